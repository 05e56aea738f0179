"""`godwit volumes …`."""
