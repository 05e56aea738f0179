"""What `godwit import` does: finds what there is, takes it over in batches, and says what became of it."""
