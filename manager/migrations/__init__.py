"""Versions of the catalog's schema (Alembic). `manager.catalog.upgrade` runs them; there is no alembic.ini."""
