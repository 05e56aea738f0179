"""What the extension may tell the kernel again: only what the kernel was told, for no longer, and not after it has changed."""

import time
from typing import cast

import msgspec
import trio
import trio.testing

from cluster.messages import Grant, Node, Recall
from fusefs.caching.cache import Caching
from fusefs.kernel.stream import Channel
from fusefs.kernel.told import NS, Told

DIRECTORY, FILE = 1, 7
NODE = Node(FILE, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
ACCESS_S = 60.0


class Extension:
    """In the place of the channel: what it may tell, and until when (CLOCK_MONOTONIC, ns)."""

    def __init__(self) -> None:
        self.attributes: dict[int, int] = {}
        self.names: dict[tuple[int, bytes], tuple[int, int]] = {}

    def put_attributes(self, ino: int, _attributes: bytes, _xattrs: int, until_ns: int) -> None:
        self.attributes[ino] = until_ns

    def put_name(self, parent: int, name: bytes, ino: int, until_ns: int) -> None:
        self.names[parent, name] = ino, until_ns

    def drop(self, ino: int) -> None:
        self.attributes.pop(ino, None)
        self.names = {key: value for key, value in self.names.items() if key[0] != ino}

    def drop_name(self, parent: int, name: bytes) -> None:
        self.names.pop((parent, name), None)

    def drop_names(self) -> None:
        self.names.clear()


class Mount:
    """A mount that is granted what it asks for. *is_written_past* as in `Caching`."""

    def __init__(self, *, is_written_past: bool = False) -> None:
        self.extension = Extension()
        told = Told(cast(Channel, self.extension))
        self.caching = Caching(is_written_past=lambda _ino: is_written_past, told=told)
        self.serial = 0

    def looks_up(self, name: bytes, node: Node | None, access_s: float = ACCESS_S) -> None:
        self.serial += 1
        inodes = [DIRECTORY] if node is None else [DIRECTORY, node.ino]
        permit = self.caching.take(Grant(self.serial, access_s, inodes), trio.current_time())
        if node is not None:
            self.caching.keep_node(node, permit)
        attr_until_s = 0.0 if node is None else permit.until_s(node.ino)
        self.caching.entry_reply(node, attr_until_s, DIRECTORY, name, permit.until_s(DIRECTORY))

    def recalls(self, *inodes: int) -> None:
        self.serial += 1
        self.caching.recalled(Recall(1, self.serial, list(inodes)))

    @property
    def told(self) -> set[bytes | int]:
        """The names and the inodes of which the extension may tell."""
        return {name for _, name in self.extension.names} | set(self.extension.attributes)


def looked() -> Mount:
    """A mount that has looked up two names. To be called in the event loop."""
    mount = Mount()
    mount.looks_up(b"file", NODE)
    mount.looks_up(b"absent", None)
    return mount


async def test_what_was_told_may_be_told_for_as_long() -> None:
    mount = Mount()
    before_ns = time.monotonic_ns()
    mount.looks_up(b"file", NODE)
    after_ns = time.monotonic_ns()
    ino, name_until_ns = mount.extension.names[DIRECTORY, b"file"]
    assert ino == FILE
    for until_ns in (name_until_ns, mount.extension.attributes[FILE]):
        assert before_ns + ACCESS_S * NS - NS / 100 <= until_ns <= after_ns + ACCESS_S * NS


async def test_the_clock_of_the_extension_may_be_early_but_never_late() -> None:
    """Whatever happens between reading the two clocks."""

    def slow() -> float:
        time.sleep(0.05)
        return trio.current_time()

    extension = Extension()
    caching = Caching(told=Told(cast(Channel, extension), now=slow))
    permit = caching.take(Grant(1, ACCESS_S, [FILE]), trio.current_time())
    caching.keep_node(NODE, permit)
    assert extension.attributes[FILE] <= time.monotonic_ns() + (permit.until_s(FILE) - trio.current_time()) * NS


async def test_what_changes_without_being_told_is_not_kept() -> None:
    mount = Mount()
    mount.looks_up(b"file", NODE)
    mount.looks_up(b"file", msgspec.structs.replace(NODE, dirty=True))
    assert FILE not in mount.told
    written = Mount(is_written_past=True)
    written.looks_up(b"file", NODE)
    assert written.told == set()


async def test_what_is_renewed_may_be_told_for_longer() -> None:
    mount = looked()
    before_ns = mount.extension.attributes[FILE]
    await trio.sleep(0.01)
    mount.serial += 1
    mount.caching.renewed(Grant(mount.serial, ACCESS_S, [FILE]), trio.current_time())
    assert mount.extension.attributes[FILE] > before_ns


async def test_what_is_told_without_a_lease_is_told_once() -> None:
    mount = Mount()
    mount.caching.entry_reply(NODE, 0.0, DIRECTORY, b"file", 0.0)
    assert mount.told == set()


async def test_a_recall_takes_back_attributes_and_names_within() -> None:
    mount = looked()
    assert mount.told == {b"file", b"absent", FILE}
    mount.recalls(FILE)
    assert mount.told == {b"file", b"absent"}
    mount.recalls(DIRECTORY)
    assert mount.told == set()


async def test_a_change_of_our_own_takes_back_what_it_touches() -> None:
    mount = looked()
    mount.caching.changed([FILE], None, trio.current_time())
    assert mount.told == {b"file", b"absent"}
    mount.caching.changed([DIRECTORY], None, trio.current_time())
    assert mount.told == set()


async def test_a_name_that_the_kernel_has_lost_is_not_told_again() -> None:
    mount = looked()
    mount.caching.removed_name(DIRECTORY, b"file")
    assert mount.told == {b"absent", FILE}
    mount.caching.moved_name((DIRECTORY, b"x"), (DIRECTORY, b"absent"), exchange=False)
    assert mount.told == {FILE}


async def test_when_all_names_are_voided_none_is_told() -> None:
    mount = looked()
    mount.caching.voided_names()
    assert mount.told == {FILE}


async def test_what_has_run_out_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    mount = looked()
    await trio.sleep(ACCESS_S + 1.0)
    mount.caching.expired()
    assert mount.told == set()
