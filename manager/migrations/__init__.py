"""Versions of the catalog's schema (Alembic). `manager.migrate` runs them; there is no alembic.ini."""
