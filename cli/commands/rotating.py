"""Watching how one authority follows another: who is waited for, and what can be done about it."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.display.live import displaying, interruptible
from cli.display.render import print_line, print_table
from cli.network.ask import talk_on
from cli.network.target import Target
from cluster.errors import GodwitError
from cluster.messages import AuthorityState, GetAuthorities, Missing, RotateAuthority, Rotation, ShowCertificate
from cluster.rpc.connection import ask_once
from cluster.rpc.conversation import Asker
from cluster.trust.credentials import Credentials
from cluster.trust.identity import Role

SHOW_S = 3.0  # for one manager to answer
POLL_S = 0.5  # a question to the manager each time
PHASES: dict[str, str] = {
    AuthorityState.INTRODUCED: "the new authority is being made known",
    AuthorityState.LEAVING: "processes get certificates of the new authority",
}
REASONS: dict[str, str] = {
    Missing.SHOWN: "it has not been there",
    Missing.BELIEF: "it does not know the new authority",
    Missing.CERTIFICATE: "it has no certificate of it",
}

Renew = Callable[[Credentials], Awaitable[None]]


class Display(Protocol):
    """What shows each state that was seen."""

    def show(self, found: Rotation) -> None: ...


def watch_rotation(target: Target, timeout_s: float, renew: Renew, *, quiet: bool = False) -> Rotation:
    """Begins a rotation, or joins the one that is under way, and shows it until it is over. Ctrl-C ends only the watching.

    *renew* gets this command's own certificate renewed: on a machine without an agent nobody else does.
    """
    credentials = target.credentials

    nothing: Display = _Nothing()

    async def follow(asker: Asker) -> Rotation:
        own = _Own(credentials, renew)
        found = await asker(RotateAuthority(credentials.revision))
        with displaying(nothing, _Redrawn, _Lines, quiet=quiet) as display:
            while True:
                display.show(found)
                if not found.phase:
                    return found
                await own.keep_up(found, target.managers)
                await trio.sleep(POLL_S)
                found = await asker(GetAuthorities())

    with interruptible("the rotation goes on; look at it with: godwit certs rotate-ca --status"):
        return talk_on(target, timeout_s, follow)


class _Own:
    """The certificate of this command."""

    def __init__(self, credentials: Credentials, renew: Renew) -> None:
        self._credentials = credentials
        self._renew = renew

    async def keep_up(self, found: Rotation, managers: Sequence[str]) -> None:
        """Does what the manager waits for. Somebody who may not write the files leaves that to the server's agent."""
        mine = self._credentials
        mine.refresh()
        if (mine.identity.server, Role.ADMIN) not in {(one.server, one.role) for one in found.waiting}:
            return
        try:
            if mine.is_superseded:
                await self._renew(mine)
        except (GodwitError, OSError):
            return  # it is named as long as it is waited for
        await show_own(mine, managers)


async def show_own(mine: Credentials, managers: Sequence[str]) -> None:
    """Shows this command's certificate to the manager, if it is there."""
    for manager in managers:
        try:
            await ask_once(manager, ShowCertificate(mine.revision), mine, timeout_s=SHOW_S)
        except GodwitError:
            continue  # not in office, or not there
        return


def rotation_object(found: Rotation) -> dict[str, object]:
    """A rotation for JSON; see docs/cli.md."""
    return {
        "phase": found.phase or None,
        "revision": found.revision,
        "authorities": [
            {"number": one.number, "authority": one.pin, "state": one.state, "ends_s": one.ends_s} for one in found.authorities
        ],
        "waiting": [{"server": one.server, "role": one.role, "missing": one.missing} for one in found.waiting],
        "expected": found.expected,
    }


def show_rotation(found: Rotation) -> None:
    """Prints how far it is, and what to do about those that are waited for."""
    print_line(describe(found))
    for one in found.authorities:
        print_line(f"authority {one.number} {one.pin[:12]} {one.state}")
    if found.waiting:
        print_line()
        print_table(("SERVER", "ROLE", "MISSING"), _rows(found))
        print_line()
        for line in advice(found):
            print_line(line)


def describe(found: Rotation) -> str:
    """One line that says how far it is."""
    if not found.phase:
        (number,) = [one.number for one in found.authorities if one.state == AuthorityState.SIGNS]
        return f"no rotation is under way: authority {number} signs, and is the only one that is believed"
    followed = found.expected - len(found.waiting)
    return f"{PHASES.get(found.phase, found.phase)}: {followed} of {found.expected} have followed"


def advice(found: Rotation) -> list[str]:
    """What to do about who is waited for."""
    servers = sorted({one.server for one in found.waiting})
    return [
        f"Waits for {', '.join(servers)}. Start what is down there, and it follows; for a mount its agent does so in minutes.",
        "  Commands on a machine without an agent follow when godwit certs rotate-ca is typed there.",
        "  A server that does not come back is left out by: godwit servers revoke NAME (it needs godwit rejoin then).",
    ]


def _rows(found: Rotation) -> list[tuple[str, str, str]]:
    return [(one.server, one.role, REASONS.get(one.missing, one.missing)) for one in found.waiting]


class _Nothing:
    def show(self, found: Rotation) -> None:
        """Prints nothing: the caller prints the end."""


class _Lines:
    """A line whenever something has changed."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, found: Rotation) -> None:
        line = describe(found)
        if found.waiting:
            line += "; waits for " + ", ".join(f"{one.role} of {one.server}" for one in found.waiting)
        if line != self._last:
            print_line(line)
            sys.stdout.flush()
            self._last = line


class _Redrawn:
    """What has come, and who is waited for, in a table."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, found: Rotation) -> None:
        grid = Table.grid()
        grid.add_row(Text(describe(found)))
        if found.waiting:
            table = Table("SERVER", "ROLE", "MISSING", box=None, pad_edge=False)
            for row in _rows(found):
                table.add_row(*map(Text, row))
            grid.add_row(table)
            for line in advice(found):
                grid.add_row(Text(line, style="dim"))
        self._live.update(grid)
