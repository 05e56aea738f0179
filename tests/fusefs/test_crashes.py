"""Whoever dies after whatever changes: what was synced is there, and what is missing is the end of what was done.

Sequences of two steps are a sample; all of them: GODWIT_CRASHES_EVERY=1. Other random ones: GODWIT_FUZZ_SEED=7.
"""

import errno
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cluster.errors import Refused
from cluster.leases import margin_s
from cluster.messages import Rename
from tests.fusefs.crashing import ACCESS_S, CatalogDisk, Death, Dies, Mount, Seen, run, run_cut_off, run_with_managers, running
from tests.fusefs.sequences import (
    FILES,
    FIRST,
    SYNCS,
    Change,
    Kind,
    Sequence,
    State,
    Step,
    Then,
    files_of,
    random_sequence,
    sequences,
    states_of,
    text_of,
)
from tests.manager.databases import in_memory
from tests.manager.office import NOW
from tests.support.clocks import skip

Tell = Callable[[str], None]
RATE = 0.01
EVERY = int(os.environ.get("GODWIT_CRASHES_EVERY", "0"))
SEED = int(os.environ.get("GODWIT_FUZZ_SEED", "1"))
LENGTH = 12  # of what is drawn at random
SAFE_SAVE = (
    Step(Change(Kind.CREATE, "A/n"), Then.NOTHING),
    Step(Change(Kind.WRITE, "A/n"), Then.FILE),
    Step(Change(Kind.RENAME, "A/n", "A/x"), Then.DIRECTORY),
)


@pytest.fixture(autouse=True)
def clock() -> trio.testing.MockClock:
    """So slow that no record is sent because time passes, however busy the machine is: only tests move it on."""
    return trio.testing.MockClock(rate=RATE)


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, as syncs are waited for by the thousand."""
    with tempfile.TemporaryDirectory(prefix="godwit-crashes-", dir=in_memory()) as made:
        yield Path(made)


def names_synced(sequence: Sequence) -> int:
    """How many steps are durable with their names: an `fsync` goes behind all records of its mount."""
    return max((number for number, step in enumerate(sequence, 1) if step.then in SYNCS), default=0)


def writes(sequence: Sequence) -> tuple[dict[int, int], dict[int, int]]:
    """How often each file was written in the end, and how often when it was synced last."""
    files = files_of(sequence)
    written = dict.fromkeys(FILES, 1)
    synced = dict(written)
    for number, (step, file) in enumerate(zip(sequence, files, strict=True)):
        if step.change.kind is Kind.CREATE:
            written[file] = synced[file] = 0
        if step.change.kind is Kind.WRITE:
            written[file] += 1
        if step.then in (Then.FILE, Then.FIRST_FILE):
            of = file if step.then is Then.FILE else next(ino for ino in files[:number] if ino)
            synced[of] = written[of]
    return written, synced


def check(sequence: Sequence, seen: Seen, *, loses_power: bool, least: int = 0) -> int:
    """Whether this may be left of it; how many of its last steps are missing. *least*: so many may not be."""
    states = states_of(sequence)
    least = max(least, names_synced(sequence)) if loses_power else len(sequence)
    names = {path: node.ino for path, node in seen.names.items()}
    fitting = [
        number
        for number, state in enumerate(states)
        if number >= least and {path: seen.inodes[ino] for path, ino in state.names.items()} == names
    ]
    assert fitting, f"{text_of(sequence)}: left is {sorted(names)}, of at least {least} steps"
    assert seen.lost == 0, text_of(sequence)
    _check_content(sequence, states[fitting[-1]], seen, loses_power=loses_power)
    return len(sequence) - fitting[-1]


def _check_content(sequence: Sequence, state: State, seen: Seen, *, loses_power: bool) -> None:
    written, synced = writes(sequence)
    for path, ino in state.names.items():
        node = seen.names[path]
        links = 2 + sum(state.is_directory(name) and name.rpartition("/")[0] == path for name in state.names)
        assert node.nlink == (links if ino in state.directories else state.links(ino)), f"{text_of(sequence)}: {path}"
        if ino not in state.directories:
            least = synced[ino] if loses_power else written[ino]
            assert node.home_volume == 1, f"{text_of(sequence)}: {path} has no home"
            assert least <= seen.written[node.ino] <= written[ino], f"{text_of(sequence)}: content of {path}"


def some(every: int) -> list[Sequence]:
    """All sequences of one step, and *every* n-th of those of two."""
    return [*sequences(1), *pairs(every)]


def pairs(every: int) -> Iterator[Sequence]:
    """*every* n-th of the sequences of two steps: a prime, so that no kind is left out; and what editors do."""
    return itertools.chain([SAFE_SAVE], itertools.islice(sequences(2), 0, None, EVERY or every))


def either(few: int, many: int) -> pytest.MarkDecorator:
    """As `some`: few of the sequences, or many in a long search."""
    return pytest.mark.parametrize(
        "every", [pytest.param(few, id="few"), pytest.param(many, id="many", marks=pytest.mark.search)]
    )


class Told:
    """What a test has done."""

    def __init__(self) -> None:
        self.cases = self.shorter = self.steps = self.recorded = 0

    def note(self, sequence: Sequence, seen: Seen, missing: int) -> None:
        self.cases += 1
        self.shorter += missing > 0
        self.steps += len(sequence)
        self.recorded += seen.recorded

    def __str__(self) -> str:
        made = f"{self.recorded} of {self.steps} steps were recorded changes"
        return f"{self.cases} cases, of which {self.shorter} lost steps at their end; {made}"


@either(31, 3)
@pytest.mark.parametrize("dies", [Dies.MACHINE, Dies.PROCESS, Dies.PROCESS_AND_AGENT], ids=lambda dies: dies.name.lower())
async def test_a_mount_dies(dies: Dies, every: int, folder: Path, tell: Tell) -> None:
    told = Told()
    async with running(folder) as network:
        for sequence in some(every):
            seen = await run(network, sequence, dies)
            told.note(sequence, seen, check(sequence, seen, loses_power=dies.loses_power))
    assert (told.shorter > 0) == (dies is Dies.MACHINE), "else nothing was unsent when it died"
    tell(str(told))


@either(83, 11)
async def test_the_machine_of_mount_and_manager_dies(
    every: int, folder: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    async with running(folder, CatalogDisk(monkeypatch)) as network:
        for sequence in some(every):
            seen = await run(network, sequence, Dies.BOTH)
            told.note(sequence, seen, check(sequence, seen, loses_power=True))
    assert told.shorter
    tell(str(told))


@either(61, 7)
@pytest.mark.parametrize("answered", [False, True], ids=["copied", "sent afterwards"])
async def test_a_mount_that_was_cut_off_dies_with_its_machine(answered: bool, every: int, folder: Path, tell: Tell) -> None:
    """What is on the disk is sent when the machine is back, also where the manager has got it meanwhile."""
    told = Told()
    async with running(folder) as network:
        for sequence in some(every):
            steps = 1 if answered else len(sequence)
            seen = await run_cut_off(network, sequence, steps)
            told.note(sequence, seen, check(sequence, seen, loses_power=True, least=steps))
    assert (told.shorter > 0) == answered
    tell(str(told))


@either(307, 53)
@pytest.mark.parametrize("loses_power", [False, True], ids=["process", "machine"])
async def test_the_manager_dies_while_records_are_under_way(
    loses_power: bool, every: int, folder: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each message with records or `Sync`, before and after it was applied, and in the end: all is there, and once."""
    told, excused = Told(), 0
    async with running(folder, CatalogDisk(monkeypatch)) as network:
        for sequence in pairs(every):
            deaths = (Death(number, answers, loses_power) for number in itertools.count(1) for answers in (False, True))
            for death in itertools.chain([Death(0, False, loses_power)], deaths):
                seen = await run_with_managers(network, sequence, death)
                if seen is None:
                    break
                if seen.is_excused:
                    excused += 1
                    continue
                told.note(sequence, seen, check(sequence, seen, loses_power=False))
    assert excused < told.cases / 4
    tell(f"{told}; beside {excused} in which the manager had made a change itself that was not durable")


@pytest.mark.parametrize("count", [pytest.param(60, id="few"), pytest.param(600, id="many", marks=pytest.mark.search)])
async def test_whoever_dies_after_a_longer_time(count: int, folder: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    told, draw = Told(), random.Random(SEED)
    async with running(folder, CatalogDisk(monkeypatch)) as network:
        for _ in range(count):
            sequence, dies = random_sequence(draw, LENGTH), draw.choice([*Dies, None])
            if dies is not None:
                seen: Seen | None = await run(network, sequence, dies)
            else:
                seen = await run_with_managers(network, sequence, Death(draw.randrange(6), draw.random() < 0.5, False))
            if seen is not None:
                told.note(sequence, seen, check(sequence, seen, loses_power=dies is not None and dies.loses_power))
    assert told.shorter
    tell(str(told))


@pytest.mark.parametrize("of", ["file", "directory"])
async def test_an_fsync_that_waits_for_a_change_that_was_lost_says_so(of: str, folder: Path) -> None:
    async with running(folder) as network, trio.open_nursery() as nursery:
        mount = Mount(network, nursery)
        await mount.begin()
        await mount.perform((Step(Change(Kind.RENAME, "A/x", "A/n"), Then.NOTHING),))
        directory, file = mount.inodes[FIRST.names["A"]], FIRST.names["A/x"]
        mount.session.disconnect()
        await skip(ACCESS_S + margin_s(ACCESS_S))
        await network.reader.apply(Rename(directory, b"x", directory, b"other", 0, NOW))
        await mount.session.connect()
        with pytest.raises(Refused) as refusal:
            await (mount.sync_file(file) if of == "file" else mount.sync_directory(directory))
        assert refusal.value.errno == errno.EIO
        assert mount.records.lost == 1
        await (mount.sync_file(file) if of == "file" else mount.sync_directory(directory))
        nursery.cancel_scope.cancel()
    mount.journal.close(empty=True)
