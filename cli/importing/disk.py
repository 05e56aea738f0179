"""The half of an import that works on disks: takes files over, and removes their old names when the network has them. Blocks."""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack, suppress

import msgspec

from cli.importing.attributes import Xattrs, imported_name, read_xattrs
from cli.importing.findings import File, Found, Place, Survey, Walk
from cli.importing.report import Report
from cli.importing.work import Destination, Settled, Work
from cluster.durable import sync_directory
from cluster.errors import NoSpace, error_text
from cluster.messages import Commit, ImportedAs, ImportedName, ImportOutcome, Node
from cluster.volume.content import FINE_TIMES, content_of, try_lock, wait_for_next_tick
from cluster.volume.extents import are_equal
from cluster.volume.fence import lift
from cluster.volume.layout import ObjectRecord, display_path, read_record, write_record
from cluster.volume.takeover import (
    ChangedError,
    How,
    copy_in,
    find_leftover,
    give_back,
    held_still,
    link_in,
    open_source,
    remove_old,
)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Disk:
    """Of one import."""

    def __init__(self, destination: Destination, walk: Walk, survey: Survey, report: Report, *, keep: bool) -> None:
        self._destination = destination
        self._layout = destination.layout
        self._walk = walk
        self._report = report
        self._keep = keep
        self._expected = survey.links  # how many names each file has in the tree
        self._shared: dict[File, int] = {}  # files with several names that were taken over, and the numbers of their objects
        self._names_left: dict[int, int] = {}  # by number: how many of a file's names are still to come
        self._nodes: dict[int, Node] = {}  # of those

    # -------------------------------------------------------------------------------------------------- taking over

    def prepare(self, works: Iterable[Work], numbers: list[int]) -> list[Work]:
        """Takes over what is to be made; those of *works* that something can be asked for, or that are there already.

        Takes from the end of *numbers*. Raises `NoSpace` when the disk is full.
        """
        ready, folders = [], set()
        for work in works:
            try:
                self._prepare(work, numbers)
            except (ChangedError, OSError) as error:
                work.close()
                if isinstance(error, OSError) and error.errno in _FULL:
                    raise NoSpace(
                        f"{self._layout.root} is full; what was imported is whole, and the same command goes on"
                    ) from error
                self._fail(work, _reason(error))
                continue
            ready.append(work)
            if work.how is not None and work.name is not None:
                folders.add(os.path.dirname(self._layout.object_path(work.name.ino)))
        # Before the catalog has them: after a loss of power it must not know objects that are not there.
        for folder in sorted(folders) + ([os.fspath(self._layout.objects)] if folders else []):
            sync_directory(folder)
        return ready

    def _prepare(self, work: Work, numbers: list[int]) -> None:
        mode = work.found.status.st_mode
        if stat.S_ISREG(mode):
            self._prepare_file(work, numbers)
            return
        work.known = (work.directory.known or {}).get(work.found.name)
        if work.known is not None:
            return
        target = os.fsencode(os.readlink(work.found.name, dir_fd=work.folder)) if stat.S_ISLNK(mode) else b""
        xattrs = self._xattrs_of_name(work)
        work.lost = len(xattrs.lost)
        work.name = imported_name(work.directory.ino, work.found, numbers.pop(), xattrs, target)

    def _xattrs_of_name(self, work: Work) -> Xattrs:
        if not stat.S_ISDIR(work.found.status.st_mode):
            return read_xattrs(b"/proc/self/fd/%d/%s" % (work.folder, work.found.name), self._walk.brick)
        descriptor = os.open(work.found.name, _FOLDER, dir_fd=work.folder)
        try:
            return read_xattrs(descriptor, self._walk.brick)
        finally:
            os.close(descriptor)

    def _prepare_file(self, work: Work, numbers: list[int]) -> None:
        work.source = open_source(work.folder, work.found.name)
        status = os.fstat(work.source)
        if not stat.S_ISREG(status.st_mode):
            raise ChangedError("it is something else now")
        if self._is_taken_over(work, status):
            return
        work.known = (work.directory.known or {}).get(work.found.name)
        if work.known is not None:
            work.is_same = self._is_same(work, work.known)
            return
        self._take_over(work, numbers)
        if status.st_nlink > 1:
            self._shares(work, status)

    def _is_taken_over(self, work: Work, status: os.stat_result) -> bool:
        """Whether another name of the file was imported before, or an attempt before has begun with it."""
        ino = self._shared.get(File.of(status), 0)
        if not ino:
            leftover = find_leftover(self._layout, work.source)
            if leftover is None:
                return False
            if self._keep:
                raise ChangedError("an import without --keep has begun with it: let that end first")
            if not leftover.is_object:
                give_back(self._layout, work.source, leftover.record)
                return False
            work.record, ino = leftover.record, leftover.record.ino
            self._shares(work, status, ino)
        work.name = ImportedName(work.directory.ino, work.found.name, ino, home_volume=self._destination.volume)
        return True

    def _shares(self, work: Work, status: os.stat_result, ino: int = 0) -> None:
        file = File.of(status)
        number = ino or (work.name.ino if work.name else 0)
        self._shared[file] = number
        self._names_left[number] = max(1, self._expected[file])

    def _take_over(self, work: Work, numbers: list[int]) -> None:
        xattrs = read_xattrs(work.source, self._walk.brick)
        if xattrs.is_piece:
            raise ChangedError("it is a piece of a file: copy that from a mount of its volume")
        status = os.fstat(work.source)
        ino = numbers.pop()
        record = ObjectRecord(
            ino, 1, 1, "", display_path(work.path), status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns
        )
        try:
            with ExitStack() as stack:
                # What stays where it is may be written by anybody: a copy is compared.
                still = False if self._keep else stack.enter_context(held_still(work.source))
                self._bring_in(work, record, in_place=still and not xattrs.has_capability and self._has_all_names(work, status))
        except ChangedError:
            self._undo(work)
            raise
        content = content_of(os.fstat(work.made))
        name = imported_name(work.directory.ino, Found(work.found.name, status), ino, xattrs)
        work.name = msgspec.structs.replace(name, home_volume=self._destination.volume, content=content)
        work.lost = len(xattrs.lost)

    def _bring_in(self, work: Work, record: ObjectRecord, *, in_place: bool) -> None:
        if in_place and link_in(self._layout, work.source, record):
            work.made, work.how, work.record = work.source, How.LINKED, record
            return
        work.made, work.how = copy_in(self._layout, work.source, record)
        work.record = record

    def _has_all_names(self, work: Work, status: os.stat_result) -> bool:
        """Whether all names of the file are imported: through another one anybody could change the object."""
        if status.st_dev != self._destination.device:
            return False
        names = max(1, self._expected[File.of(status)])
        if self._walk.brick is not None and status.st_nlink > names:
            with self._walk.brick.link_of(work.source) as link:
                names += int(link is not None and _is_name_of(link, status))
        return status.st_nlink <= names

    def _is_same(self, work: Work, node: Node) -> bool:
        """Whether the network has this very file there, as far as it can be told here."""
        status = os.fstat(work.source)
        if not stat.S_ISREG(node.mode) or (node.size, node.mtime_ns) != (status.st_size, status.st_mtime_ns):
            return False
        if self._keep:
            return True
        # Its old name is going to be removed: only after a look at the content.
        if node.dirty or node.home_volume != self._destination.volume:
            return False
        try:
            descriptor = self._layout.open_object(node.ino, os.O_RDONLY)
        except OSError:
            return False
        try:
            return are_equal(work.source, descriptor)
        finally:
            os.close(descriptor)

    # ----------------------------------------------------------------------------------------------------- afterwards

    def give_all_back(self, works: Iterable[Work]) -> None:
        """Nothing of this was made, and nothing is going to be."""
        for work in works:
            with suppress(OSError):
                self._undo(work)
            work.close()

    def _undo(self, work: Work) -> None:
        # What an attempt before has taken over may be in the network, under another name.
        if work.record is None or work.how is None:
            return
        status = os.fstat(work.source)
        if self._shared.get(File.of(status)) == work.record.ino:
            del self._shared[File.of(status)]
            self._names_left.pop(work.record.ino, None)
        if work.how is How.LINKED:
            give_back(self._layout, work.source, work.record)
        else:
            self._layout.remove_objects([work.record.ino])
        work.record, work.how = None, None

    def settle(self, answers: Iterable[tuple[Work, ImportedAs]]) -> Settled:
        """Removes the old names of what was made, and gives back what was not; the descriptors of files stay open."""
        settled = Settled()
        for work, answer in answers:
            try:
                self._settle(settled, work, answer)
            except OSError as error:
                self._report.warn(self.shown(work), f"{error_text(error)} (what came of it is told when this is repeated)")
        if not FINE_TIMES and settled.commits:
            wait_for_next_tick(max(commit.content.ctime_ns for commit in settled.commits if commit.content))
        return settled

    def _settle(self, settled: Settled, work: Work, answer: ImportedAs) -> None:
        match answer.outcome:
            case ImportOutcome.MADE | ImportOutcome.THERE:
                assert answer.node is not None
                self._made(settled, work, answer.node)
            case ImportOutcome.TAKEN if answer.node is not None and _are_directories(work, answer.node):
                self._report.there += 1
                settled.below.append((work, answer.node.ino))
            case ImportOutcome.UNKNOWN:
                self._undo_leftover(work)
                settled.again.append(work)
            case ImportOutcome.TAKEN:
                self._undo(work)
                self._report.take(self.shown(work))
                if work.name is not None and not work.name.mode:
                    self._report.warn(
                        self.shown(work), "a file that was imported under another name: what is written here changes that"
                    )
            case _:
                self._undo(work)
                self._fail(work, answer.reason)

    def _undo_leftover(self, work: Work) -> None:
        """The inode that it was to be a name of is not in the network: the file begins anew."""
        assert work.name is not None
        ino = work.name.ino
        for file in [file for file, number in self._shared.items() if number == ino]:
            del self._shared[file]
        self._names_left.pop(ino, None)
        if work.record is not None:
            give_back(self._layout, work.source, work.record)

    def _made(self, settled: Settled, work: Work, node: Node) -> None:
        mode = work.found.status.st_mode
        self._report.lost_xattrs += work.lost
        if stat.S_ISDIR(mode):
            self._report.directories += 1
            settled.below.append((work, node.ino))
            return
        if not stat.S_ISREG(mode):
            self._report.others += 1
            self.remove_name(work)
            return
        if work.how is None:
            self._report.names += 1
        else:
            self._report.took(work.how, node.size)
            self._report.set_id += int(bool(node.mode & (stat.S_ISUID | stat.S_ISGID)))
        self.remove_name(work)
        self._end_file(settled, work, node)

    def _end_file(self, settled: Settled, work: Work, node: Node) -> None:
        left = self._names_left.get(node.ino, 1) - 1
        if left > 0:
            self._names_left[node.ino], self._nodes[node.ino] = left, node
            return
        self._names_left.pop(node.ino, None)
        self._nodes.pop(node.ino, None)
        # Of a further name of a copy, the descriptor is that of another file.
        if work.made == -1:
            work.made = self._layout.open_object(node.ino, os.O_RDONLY)
        commit = _commit_of(work.made, node)
        if commit is not None:
            settled.commits.append(commit)

    def rest(self) -> Iterable[tuple[int, Commit]]:
        """Commits of files of which not all names came, each with a descriptor to be closed when it is through."""
        for node in self._nodes.values():
            with suppress(OSError):
                descriptor = self._layout.open_object(node.ino, os.O_RDONLY)
                commit = _commit_of(descriptor, node)
                if commit is None:
                    os.close(descriptor)
                else:
                    yield descriptor, commit

    def remove_name(self, work: Work) -> None:
        """Removes the old name of something that the network has."""
        if self._keep:
            return
        try:
            if work.source != -1:
                self._remove_file(work)
            elif File.of(os.stat(work.found.name, dir_fd=work.folder, follow_symlinks=False)) == File.of(work.found.status):
                os.unlink(work.found.name, dir_fd=work.folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._report.warn(self.shown(work), f"imported, but its old name cannot be removed: {error_text(error)}")

    def _remove_file(self, work: Work) -> None:
        if self._walk.brick is not None:
            with self._walk.brick.link_of(work.source) as link:
                if link is not None:
                    remove_old(link[0], link[1], work.source)
        if not remove_old(work.folder, work.found.name, work.source):
            self._report.warn(self.shown(work), "imported, but another file has its old name by now")

    def remove_directory(self, place: Place) -> None:
        """Removes a directory if nothing is left in it."""
        with suppress(OSError), self._walk.folder.opened(place[:-1]) as folder:
            os.rmdir(place[-1], dir_fd=folder)

    def shown(self, work: Work) -> str:
        return self._walk.folder.shown(work.place)

    def _fail(self, work: Work, why: str) -> None:
        self._report.fail(self.shown(work), why)


def _is_name_of(link: tuple[int, bytes], status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(link[1], dir_fd=link[0], follow_symlinks=False), status)
    except OSError:
        return False


def _are_directories(work: Work, node: Node) -> bool:
    return stat.S_ISDIR(work.found.status.st_mode) and stat.S_ISDIR(node.mode)


def _commit_of(descriptor: int, node: Node) -> Commit | None:
    """The commit of an object that has no other name any more; None if somebody else commits it now. Keeps its lock."""
    if not try_lock(descriptor):
        return None
    record = read_record(descriptor)
    version = record.version if record is not None else 0
    if node.version or version != 1:
        version = max(node.version, version) + 1
        lift(descriptor)  # its agent has committed it meanwhile
        with suppress(OSError):
            write_record(descriptor, msgspec.structs.replace(record or ObjectRecord(node.ino, 0, 0), version=version))
    return Commit(node.ino, node.home_epoch, version, content_of(os.fstat(descriptor)), True)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EPERM:
        return "it may not be changed: is it immutable or append-only? (lsattr, chattr -ia)"
    return error_text(error) if isinstance(error, OSError) else str(error)
