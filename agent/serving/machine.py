"""Tells `godwit doctor` what this server's machine is, and sends it bytes, so that it can measure the line.

What is told is bounded in number and length, whatever the machine's lists hold; nothing in it is a secret of a user.
"""

import errno
import grp
import os
import pwd
from collections.abc import Iterable

import trio

from cluster.clock import file_time_ns, is_in_step
from cluster.errors import refused
from cluster.messages import DescribeMachine, MachineInfo, Measured, MeasureLine, Owner
from cluster.release import RELEASE
from cluster.rpc.connection import Answer

LINE_MAX_BYTES = 4 * 1024 * 1024  # of one answer; longer ones are refused
OWNERS_MAX = 2000  # of users, and of groups, that are named: the first by number
NAME_MAX_BYTES = 64  # of one; the kernel has no bound, and useradd(8) takes 32
FIRST_OWNER = 1000  # below are those of the system, whose numbers differ by nature
# Nobody, and what systemd gives to a service for as long as it runs.
NO_PEOPLE = (range(61184, 65536),)

# Lists of users may be on another machine that hangs: one thread is left waiting for them then, however often it is asked.
_lists = trio.CapacityLimiter(1)


async def answer_about_machine(server: str, request: DescribeMachine | MeasureLine) -> MachineInfo | Answer:
    """The reply to one of both."""
    if isinstance(request, DescribeMachine):
        return await trio.to_thread.run_sync(_describe, server, limiter=_lists, abandon_on_cancel=True)
    if not 0 <= request.size <= LINE_MAX_BYTES:
        raise refused(errno.EINVAL, f"{request.size} bytes")
    return Answer(Measured(file_time_ns()), bytes(request.size))


def line_bytes(request: MeasureLine) -> int:
    """How long the body of the answer is at most."""
    return min(max(0, request.size), LINE_MAX_BYTES)


def _describe(server: str) -> MachineInfo:
    return MachineInfo(
        server,
        RELEASE,
        os.uname().release,
        people((user.pw_uid, user.pw_name) for user in pwd.getpwall()),
        people((group.gr_gid, group.gr_name) for group in grp.getgrall()),
        is_in_step(),
    )


def people(listed: Iterable[tuple[int, str]]) -> list[Owner]:
    """Those that are no service's, by number, without those that do not fit."""
    found = {
        Owner(number, os.fsencode(name))
        for number, name in listed
        if number >= FIRST_OWNER and not any(number in left_out for left_out in NO_PEOPLE)
    }
    short = [owner for owner in found if len(owner.name) <= NAME_MAX_BYTES]
    return sorted(short, key=lambda owner: (owner.number, owner.name))[:OWNERS_MAX]
