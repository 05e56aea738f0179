"""Whom a command asks: which network, its manager, its agents."""
