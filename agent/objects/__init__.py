"""Objects on volumes: read, received, published, set aside. Most of it blocks, and runs in threads."""
