"""An import from its beginning to its end: directory by directory, in batches, of which the manager makes the names.

Of each batch: numbers are drawn, files are taken over (`cli.importing.disk`), the manager makes the names, durably; then the old
names are removed, and the files committed. What an interruption leaves at any of these steps is found when it is repeated.
"""

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import trio

from cli.importing.attributes import weight
from cli.importing.disk import Disk
from cli.importing.findings import Place, Walk, names_in
from cli.importing.report import Report
from cli.importing.work import Directory, Work
from cluster.clock import file_time_ns
from cluster.errors import NoSpace, Refused, error_text
from cluster.messages import (
    Commit,
    FinishImport,
    ImportedAs,
    ImportedName,
    ImportNames,
    Node,
    ReadDir,
    ReadLink,
    TakeInodes,
)
from cluster.rpc.conversation import Asker

BATCH = 256  # names
DIRECTORIES_MAX = 64  # open at once
REQUEST_BYTES = 1 << 20
NUMBERS = 2048  # that are drawn at once
LISTING = 1000  # names in one answer
ROUNDS_MAX = 4  # in which a name is tried again whose file turned out to be in the network no more


class Importer:
    """One run."""

    def __init__(self, asker: Asker, walk: Walk, disk: Disk, report: Report, *, keep: bool, progress: Callable[[], None]) -> None:
        self._asker = asker
        self._walk = walk
        self._disk = disk
        self._report = report
        self._keep = keep
        self._progress = progress
        self._numbers: list[int] = []
        self._waiting: list[Directory] = []
        self._visited: list[Place] = []  # directories, each behind the one that it is in

    async def run(self, top: Directory) -> None:
        """Imports everything below *top*. Raises what the manager answers; then the same run may be made again."""
        self._waiting.append(top)
        while self._waiting:
            with ExitStack() as stack:
                works = await self._next(stack)
                for start in range(0, len(works), BATCH):
                    await self._import(works[start : start + BATCH])
                    self._progress()
        for descriptor, commit in self._disk.rest():
            await self._commit([commit])
            os.close(descriptor)
        if not self._keep:
            for place in reversed(self._visited):
                self._disk.remove_directory(place)

    async def _next(self, stack: ExitStack) -> list[Work]:
        """The names of some directories, which stay open in *stack*."""
        works: list[Work] = []
        opened = 0
        while self._waiting and len(works) < BATCH and opened < DIRECTORIES_MAX:
            directory = self._waiting.pop()
            try:
                folder = self._walk.folder.open(directory.place)
                stack.callback(os.close, folder)
                works += await trio.to_thread.run_sync(self._works, directory, folder)
            except OSError as error:
                self._report.fail(self._walk.folder.shown(directory.place), error_text(error))
            opened += 1
        return works

    def _works(self, directory: Directory, folder: int) -> list[Work]:
        works = []
        for found in names_in(folder):
            place = (*directory.place, found.name)
            if why := self._walk.why_skipped(place, found, folder):
                self._report.skip(self._walk.folder.shown(place), why)
            else:
                works.append(Work(directory, found, folder))
        return works

    async def _import(self, works: Sequence[Work]) -> None:
        again: Sequence[Work] = works
        for _round in range(ROUNDS_MAX):
            again = await self._import_once(again)
            if not again:
                return
        for work in again:
            self._report.fail(self._disk.shown(work), "it is removed in the network meanwhile: try again")

    async def _import_once(self, works: Sequence[Work]) -> list[Work]:
        await self._draw(len(works))
        answers: list[tuple[Work, ImportedAs]] = []
        try:
            await self._make(works, answers)
            settled = await trio.to_thread.run_sync(self._disk.settle, answers)
            await self._commit(settled.commits)
        finally:
            for work in works:
                work.close()
        for work, ino in settled.below:
            await self._wait_for(work, ino)
        for work in settled.again:
            work.name, work.record, work.how = None, None, None
        return settled.again

    async def _make(self, works: Sequence[Work], answers: list[tuple[Work, ImportedAs]]) -> None:
        """Takes files over, and has the names made; what became of them is added to *answers*."""
        try:
            ready = await trio.to_thread.run_sync(self._disk.prepare, works, self._numbers)
            await self._meet([work for work in ready if work.name is None])
            await self._ask([work for work in ready if work.name is not None], answers)
        except (NoSpace, Refused):
            # It is certain that nothing came of the others; when nobody answers it is not, and all stays for the next attempt.
            answered = {id(work) for work, _answer in answers}
            await trio.to_thread.run_sync(self._disk.give_all_back, [work for work in works if id(work) not in answered])
            raise

    async def _draw(self, count: int) -> None:
        if len(self._numbers) < count:
            given = await self._asker(TakeInodes(NUMBERS))
            self._numbers = [*range(given.first + given.count - 1, given.first - 1, -1), *self._numbers]

    async def _ask(self, works: Sequence[Work], answers: list[tuple[Work, ImportedAs]]) -> None:
        """Has the names made, and adds what became of them to *answers*."""
        while len(answers) < len(works):
            part: list[ImportedName] = []
            size = 0
            for work in works[len(answers) :]:
                assert work.name is not None
                size += weight(work.name)
                if part and size > REQUEST_BYTES:
                    break
                part.append(work.name)
            reply = await self._asker(ImportNames(part, file_time_ns()))
            answers += zip(works[len(answers) : len(answers) + len(part)], reply.names, strict=True)

    async def _commit(self, commits: Sequence[Commit]) -> None:
        if not commits:
            return
        try:
            await self._asker(FinishImport(list(commits)))
        except Refused:
            # One of them was removed, or committed by its home's agent meanwhile. Who is not committed here is so by that agent.
            for commit in commits if len(commits) > 1 else ():
                await self._commit([commit])

    # ------------------------------------------------------------------------------------ what the network has already

    async def _meet(self, works: Sequence[Work]) -> None:
        """Names that the network has already."""
        for work in works:
            assert work.known is not None
            if stat.S_ISDIR(work.found.status.st_mode) and stat.S_ISDIR(work.known.mode):
                self._report.there += 1
                await self._wait_for(work, work.known.ino)
            elif work.is_same or await self._is_same(work, work.known):
                self._report.there += 1
                await trio.to_thread.run_sync(self._disk.remove_name, work)
            else:
                self._report.take(self._disk.shown(work))

    async def _is_same(self, work: Work, node: Node) -> bool:
        """Whether something that is neither a file nor a directory is there already, as an attempt before has made it."""
        status = work.found.status
        ours = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
        if stat.S_ISREG(status.st_mode) or ours != (node.mode, node.uid, node.gid, node.mtime_ns):
            return False
        if not stat.S_ISLNK(status.st_mode):
            return status.st_rdev == node.rdev or stat.S_ISFIFO(status.st_mode)
        target = (await self._asker(ReadLink(node.ino))).value
        return target == os.fsencode(os.readlink(work.found.name, dir_fd=work.folder))

    async def _wait_for(self, work: Work, ino: int) -> None:
        """A directory is there on both sides: what is in it comes later."""
        is_new = work.name is not None and work.name.ino == ino
        known = None if is_new else await self.listing(ino)
        self._waiting.append(Directory(work.place, ino, work.path, known))
        self._visited.append(work.place)

    async def listing(self, ino: int) -> dict[bytes, Node]:
        """What the network has in a directory."""
        known: dict[bytes, Node] = {}
        after = 0
        while True:
            page = await self._asker(ReadDir(ino, after, LISTING))
            known |= {entry.name: entry.node for entry in page.entries}
            if page.end or not page.entries:
                return known
            after = page.entries[-1].cookie
