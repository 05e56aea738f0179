"""Bodies of transactions, and what they read: no `await` in them. Knows the catalog and the memory, but no term."""
