"""The object behind an open file, as the overlay sees it, which does not care which kind it has: on this server's own disk
(`fusefs.content.local_object`), or at another server's agent (`fusefs.content.remote_object`).
"""

from typing import Protocol

from cluster.messages import Content, Node, SetAttr

Buffer = bytes | memoryview


class Object(Protocol):
    """What a file's content can be asked for. All methods raise `GodwitError`."""

    is_remote: bool

    @property
    def is_fenced(self) -> bool:
        """Whether it must be opened anew before it can be written."""

    async def read(self, offset: int, length: int) -> Buffer: ...

    async def write(self, offset: int, data: bytes, *, append: bool) -> int: ...

    async def truncate(self, size: int) -> None: ...

    async def allocate(self, mode: int, offset: int, length: int) -> None: ...

    async def seek(self, offset: int, whence: int) -> int | None:
        """Where data or a hole begins; None if nothing of the kind follows."""

    async def copy_from(self, source: "Object", start: int, offset: int, length: int) -> int:
        """Copies from *start* of the source to *offset*, without the bytes coming here; returns how much, 0 at the end.

        Refused with EXDEV if that cannot be done with this source.
        """

    async def sync(self, *, data_only: bool) -> None: ...

    async def stat(self) -> Content: ...

    async def commit(self, node: Node, path: bytes, *, final: bool) -> Node: ...

    async def set_times(self, change: SetAttr) -> Node: ...

    def close(self) -> None: ...
