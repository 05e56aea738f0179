"""Copies of objects between agents: the queue, the target's side and the source's side."""
