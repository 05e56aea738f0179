"""Every message between Godwit's processes.

A request is a `ManagerRequest[Reply]` or an `AgentRequest[Reply]`; the connection (`cluster.rpc.connection`) carries it with a
number and brings back the reply or a `Failure`. Names are bytes, times are nanoseconds since the epoch, sizes are bytes. Inode,
volume and task numbers are 64-bit, signed (owners of locks unsigned): what is larger is no message, nor is a number of seconds
that is NaN. Requests marked *mutation* carry a `request_id` and are applied once, however often they are sent; all others may be
repeated freely.

Structs are encoded as msgpack arrays: append fields only at the end, with a default. A new message is one class in one of these
modules; the unions follow from its base.
"""

from functools import reduce
from operator import or_
from typing import Any

from cluster.messages.admin import *
from cluster.messages.authorities import *
from cluster.messages.backups import *
from cluster.messages.base import *
from cluster.messages.base import AgentRequest, ManagerRequest, Reply
from cluster.messages.caching import *
from cluster.messages.changes import *
from cluster.messages.damage import *
from cluster.messages.events import *
from cluster.messages.forsaken import *
from cluster.messages.held import *
from cluster.messages.imports import *
from cluster.messages.locks import *
from cluster.messages.machines import *
from cluster.messages.migrations import *
from cluster.messages.objects import *
from cluster.messages.office import *
from cluster.messages.opens import *
from cluster.messages.pulls import *
from cluster.messages.queue import *
from cluster.messages.reads import *
from cluster.messages.servers import *
from cluster.messages.session import *
from cluster.messages.values import *
from cluster.messages.volumes import *

MANAGER_UNION: Any = reduce(or_, ManagerRequest.__subclasses__())
"""The union of all that managers are asked, for decoders."""

AGENT_UNION: Any = reduce(or_, AgentRequest.__subclasses__())
"""The union of all that agents are asked, for decoders."""

REPLY_UNION: Any = reduce(or_, Reply.__subclasses__())
"""The union of all replies, for decoders."""
