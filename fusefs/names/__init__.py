"""Names and directories: lookups, listings, and the changes that the manager makes for them."""
