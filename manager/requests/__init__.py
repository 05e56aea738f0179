"""One handler for each request, with the term and the session that it is for."""
