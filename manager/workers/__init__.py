"""What a manager does without being asked: loops that run as long as the term."""
