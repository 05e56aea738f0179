"""Loops beside the queue: each tells the manager something, or finishes what others left behind."""
