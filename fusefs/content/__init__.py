"""The bytes of files: where they are, and how they are opened, read, written and committed."""
