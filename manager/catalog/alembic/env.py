"""What Alembic runs for each command: the versions, on the connection and in the transaction of `manager.catalog.upgrade`."""

from alembic import context

from manager.catalog.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
