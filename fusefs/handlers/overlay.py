"""The operations that the handlers of requests call, by subject."""

from dataclasses import dataclass

from fusefs.content.files import Files
from fusefs.content.handles import Handles
from fusefs.content.opening import Opener
from fusefs.names.creating import Creation
from fusefs.names.directories import Directories
from fusefs.names.lookups import Lookups
from fusefs.names.namespace import Namespace
from fusefs.names.set_attributes import SetAttributes
from fusefs.names.set_id_bits import SetIdBits
from fusefs.names.xattrs import Xattrs


@dataclass(frozen=True, slots=True)
class Overlay:
    """A record: each handler takes the operations that its requests are about."""

    lookups: Lookups  # questions about names and attributes
    creation: Creation  # what is new
    namespace: Namespace  # links, removals, renames
    set_attributes: SetAttributes
    set_id_bits: SetIdBits
    xattrs: Xattrs
    directories: Directories
    opener: Opener
    handles: Handles  # what the kernel is told of files that it has opened
    files: Files  # the bytes behind them
