"""The mount: kernel requests → overlay semantics → the manager's catalog and the objects of this or another server."""

import fusefs.kernel.stream  # noqa: F401 - has to come before pyfuse3
