"""What a manager knows besides the catalog. It dies with the term, and is changed in the event loop only."""
