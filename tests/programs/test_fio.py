"""fio writes at random places and checks what it reads, at the home and through another server's mount, while copies are made.

`GODWIT_FIO_MIB` is the size of each file.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from io import BufferedWriter
from pathlib import Path

import pytest

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.support.conditions import godwit, wait_for_replicas
from tests.support.modes import both_modes
from tests.support.running import need, run

MIB = int(os.environ.get("GODWIT_FIO_MIB", "2"))
TIMEOUT_S = 100 + MIB * 10
WRITERS = ("s1", "s2")
SHARE_BYTES = MIB * 1024 * 1024 // len(WRITERS)

POLL_S = 0.1
POLLS_OF_A_POLICY = 20

pytestmark = [pytest.mark.programs, pytest.mark.timeout(3 * TIMEOUT_S), both_modes]

ALL_JOBS = f"""
[global]
rw=randwrite
size={SHARE_BYTES}
loops=2
verify=crc32c
verify_backlog=32
verify_fatal=1
verify_state_save=0
fallocate=none
group_reporting=1
"""

PAUSING = "pausing"
JOBS = {
    "buffered": "ioengine=psync\nbsrange=512-64k\nfdatasync=32",
    "direct": "ioengine=psync\ndirect=1\nbsrange=4k-128k",
    "mapped": "ioengine=mmap\nbsrange=4k-64k\nfsync=64",
    "mixed": "ioengine=psync\nrw=randrw\nbs=16k",
    PAUSING: "ioengine=psync\nbs=64k\nthinktime_blocks=8\nthinktime=1s",
}
# Of the others each writer has its share. fio maps a share as if it were at the beginning; and a copy is made when nobody writes.
NOT_SHARED = ("mapped", PAUSING)


def write_jobs(job_file: Path, lab: Lab, directory: Path, writer: str) -> None:
    """All jobs of one writer, which run at once."""
    place = lab.mount(writer) / directory.relative_to(lab.mount("s1"))
    text = ALL_JOBS
    for name, options in JOBS.items():
        offset = 0 if name in NOT_SHARED else WRITERS.index(writer) * SHARE_BYTES
        text += f"[{name}]\nfilename={place / file_of(name, writer)}\noffset={offset}\n{options}\n"
    job_file.write_text(text)


def file_of(job: str, writer: str) -> str:
    return f"{job}-{writer}" if job in NOT_SHARED else job


def test_what_is_written_at_random_is_what_is_read(
    network: Lab, directory: Path, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    fio = need("fio", "fio")
    files = [directory / name for name in sorted({file_of(job, writer) for job in JOBS for writer in WRITERS})]

    def write(writer: str) -> None:
        job_file = tmp_path / f"{writer}.fio"
        write_jobs(job_file, network, directory, writer)
        run([fio, job_file], cwd=tmp_path, timeout_s=TIMEOUT_S)

    with ExitStack() as held, ThreadPoolExecutor() as pool:
        opened = [held.enter_context(open(path, "wb")) for path in files]  # until the end, so that their home stays on s1
        for file in opened:
            file.truncate(len(WRITERS) * SHARE_BYTES)
        writing = [pool.submit(write, writer) for writer in WRITERS]
        copied = copy_meanwhile(network, [file for file in opened if PAUSING in file.name], writing)
        for end in writing:
            end.result()
    assert copied, "no copy was made while fio wrote"
    tell(f"{len(copied)} copies were seen while fio wrote")
    godwit(network, "policy", "set", str(directory), "--copies", str(len(network.servers)))
    for path in files:
        compare_replicas(network, path)


def copy_meanwhile(lab: Lab, files: list[BufferedWriter], writing: Sequence[Future[None]]) -> set[tuple[str, str, int]]:
    """Commits the files and changes how many copies there are to be, again and again until nobody writes. The copies that it has
    seen before: file, server, time of change."""
    copied: set[tuple[str, str, int]] = set()
    for number in itertools.count():
        if number % POLLS_OF_A_POLICY == 0:
            copies = "3" if number % (2 * POLLS_OF_A_POLICY) == 0 else "2"
            godwit(lab, "policy", "set", os.path.dirname(files[0].name), "--copies", copies)
        for file in files:
            os.fsync(file.fileno())
        seen = {(file.name, server, changed_ns(lab, server, file)) for file in files for server in lab.servers if server != "s1"}
        if not wait(writing, POLL_S).not_done:
            break
        copied |= {copy for copy in seen if copy[2]}
    return copied


def changed_ns(lab: Lab, server: str, file: BufferedWriter) -> int:
    """When the server's copy was written; 0 if there is none."""
    try:
        return os.stat(VolumeLayout(lab.volume(server)).object_path(os.fstat(file.fileno()).st_ino)).st_mtime_ns
    except FileNotFoundError:
        return 0


def compare_replicas(lab: Lab, path: Path) -> None:
    """Every replica is what every mount shows."""
    where = wait_for_replicas(lab, str(path), 3)
    shown = [lab.mount(server) / path.relative_to(lab.mount("s1")) for server in lab.servers]
    objects = [VolumeLayout(Path(replica["path"])).object_path(where["ino"]) for replica in where["replicas"]]
    for other in [*shown[1:], *objects]:
        run(["cmp", shown[0], other], cwd=path.parent)
