"""`godwit servers …`."""
