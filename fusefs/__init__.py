"""The mount: kernel requests → overlay semantics → the manager's catalog and the objects of this or another server."""
