"""Whether the objects are what the catalog says, in both directions, and what is done about it."""
