"""The other servers, as this one reaches them: whether they answer, how good the lines are, whether clocks and owners agree.

Who there is the manager says; without one it is known of candidates only, from the configuration.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import trio

from cli.diagnosis.checks import Check, Field, Verdict
from cli.display.render import as_bytes, as_shown
from cli.network.agents import CONNECT_TIMEOUT_S
from cli.network.ask import ask
from cli.network.target import Target
from cluster.clock import file_time_ns, monotonic_s
from cluster.errors import GodwitError, Refused
from cluster.health import findings, summary
from cluster.messages import (
    Answerer,
    AskOffice,
    DescribeMachine,
    GetStatus,
    MachineInfo,
    MeasureLine,
    OfficeInfo,
    Owner,
    ServerInfo,
    Status,
)
from cluster.release import RELEASE
from cluster.rpc.connection import Channel, ask_once, connect
from cluster.rpc.wire import AgentAt
from cluster.trust.credentials import Credentials

PINGS = 7  # whose median counts
LINE_BYTES = 4 * 1024 * 1024  # sent once to warm up, then LINE_TIMES, of which the fastest counts
LINE_TIMES = 2
SLOW_LINE_S = 0.05  # for the way there and back
SLOW_LINE_BYTES_S = 10 * 1000 * 1000  # what a line of 100 Mbit/s gives
CLOCK_NOTED_S = 0.1
CLOCK_WARNED_S = 1.0
SHOWN = 10  # owners that differ, by name
TURNED_OFF = "it is turned off in the configuration"


@dataclass
class Line:
    """What was measured of the line to the agent of one server; `error`: why nothing more was."""

    server: str
    address: str
    error: str = ""
    round_s: float = 0.0
    bytes_s: float = 0.0
    ahead_s: float = 0.0  # its clock, of this machine's
    unsure_s: float = 0.0  # by how much that may be wrong
    machine: MachineInfo | None = None


@dataclass
class Candidate:
    """What a candidate has answered; `error`: why it has not."""

    address: str
    error: str = ""
    office: OfficeInfo | None = None
    round_s: float = 0.0  # with the handshake


def examine_network(target: Target, timeout_s: float) -> Iterator[Check]:
    """All checks of what others are and say. Takes *timeout_s* for each of three rounds at most; each asks all at once."""
    try:
        credentials = target.credentials
    except Refused as error:
        # For who is not root that is as it should be.
        verdict = Verdict.NOTE if os.geteuid() else Verdict.FAILURE
        yield Check(Field.NETWORK, "network", verdict, f"nobody is asked: {error}", "run godwit doctor as root; or godwit rejoin")
        return
    status = _status_of(target, timeout_s)
    servers = status.servers if isinstance(status, Status) else []
    addresses = list(dict.fromkeys([*target.managers, *(info.manager for info in servers if info.manager)]))
    candidates = trio.run(ask_candidates, addresses, credentials, timeout_s)
    yield from judge_candidates(candidates)
    lines = trio.run(measure, agents_of(servers), credentials, timeout_s)
    for line in lines:
        yield from judge_line(line)
    yield from judge_owners({line.server: line.machine for line in lines if line.machine is not None})
    yield from judge_status(status)


def _status_of(target: Target, timeout_s: float) -> Status | GodwitError:
    try:
        return ask(target, timeout_s, GetStatus())
    except GodwitError as error:
        return error


def agents_of(servers: Sequence[ServerInfo]) -> dict[str, str]:
    """Where the agents of these servers are; one without volumes nobody knows."""
    return {info.server: info.volumes[0].address for info in servers if info.volumes}


# ---------------------------------------------------------------------------------------------------------- asking


async def ask_candidates(addresses: Sequence[str], credentials: Credentials, timeout_s: float) -> list[Candidate]:
    """What each of them says, all asked at once."""
    found = [Candidate(address) for address in addresses]

    async def one(candidate: Candidate) -> None:
        began_s = monotonic_s()
        try:
            request = AskOffice(credentials.identity.cluster)
            candidate.office = await ask_once(candidate.address, request, credentials, timeout_s=timeout_s)
        except GodwitError as error:
            candidate.error = str(error)
        candidate.round_s = monotonic_s() - began_s

    async with trio.open_nursery() as nursery:
        for candidate in found:
            nursery.start_soon(one, candidate)
    return found


async def measure(agents: Mapping[str, str], credentials: Credentials, timeout_s: float) -> list[Line]:
    """The lines to these agents. How much goes over them is measured one after the other: they may share one."""
    lines = [Line(server, address) for server, address in agents.items()]
    channels: dict[str, Channel] = {}

    async def first_look(line: Line, receivers: trio.Nursery) -> None:
        try:
            channel = await connect(
                line.address, receivers, credentials, AgentAt(line.server, line.address).party, timeout_s=CONNECT_TIMEOUT_S
            )
            channels[line.server] = channel
            await _ping(channel, line, timeout_s)
            line.machine = await channel.call(DescribeMachine(), timeout_s=timeout_s)
        except GodwitError as error:
            line.error = str(error)

    async with trio.open_nursery() as receivers:
        async with trio.open_nursery() as looks:
            for line in lines:
                looks.start_soon(first_look, line, receivers)
        for line in lines:
            if not line.error:
                await _load(channels[line.server], line, timeout_s)
        receivers.cancel_scope.cancel()
    return lines


async def _ping(channel: Channel, line: Line, timeout_s: float) -> None:
    """Measures the way there and back; by the quickest answer also the clock."""
    rounds: list[float] = []
    for _number in range(PINGS):
        began_s, before_ns = monotonic_s(), file_time_ns()
        answer = await channel.call(MeasureLine(0), timeout_s=timeout_s)
        round_s = monotonic_s() - began_s
        if not rounds or round_s < min(rounds):
            # Its clock was read in the middle, give or take half of the way: as of NTP.
            line.ahead_s, line.unsure_s = (answer.now_ns - before_ns) / 1e9 - round_s / 2, round_s / 2
        rounds.append(round_s)
    line.round_s = median(rounds)


async def _load(channel: Channel, line: Line, timeout_s: float) -> None:
    try:
        for _number in range(1 + LINE_TIMES):
            began_s = monotonic_s()
            await channel.call(MeasureLine(LINE_BYTES), timeout_s=timeout_s)
            rate = LINE_BYTES / max(monotonic_s() - began_s, 1e-9)
            line.bytes_s = max(line.bytes_s, rate) if _number else 0.0
    except GodwitError as error:
        line.error = f"it answers, but {as_bytes(LINE_BYTES)} do not come through: {error}"


# --------------------------------------------------------------------------------------------------------- judging


def judge_candidates(candidates: Iterable[Candidate]) -> Iterator[Check]:
    """Whether each answers, hears a manager, and whether anybody is in office."""
    answers = list(candidates)
    for candidate in answers:
        office = candidate.office
        if office is None:
            advice = "does it run there (journalctl -u godwit-manager), and lets the firewall its port through?"
            yield _check(f"manager {candidate.address}", Verdict.FAILURE, candidate.error, advice)
            continue
        subject = f"manager {office.server}"
        if office.hears is False and not office.in_office:
            text, advice = "it answers, but does not hear the manager in office", "is the line between the two cut?"
            yield _check(subject, Verdict.WARNING, text, advice)
            continue
        standing = f"in office, term {office.term}" if office.in_office else "a candidate"
        yield _check(subject, Verdict.OK, f"{standing}, answers in {candidate.round_s * 1000:.0f} ms with its handshake")
    heard = [candidate.office for candidate in answers if candidate.office is not None]
    if heard and not any(office.in_office for office in heard):
        advice = "godwit manager show; the logs of the managers, and the checks of the catalog"
        yield _check("managers", Verdict.FAILURE, "nobody is in office", advice)


def judge_line(line: Line) -> Iterator[Check]:
    """What is wrong with the line, its clock and its release; if nothing is, its figures."""
    subject = f"agent {line.server}"
    if line.error:
        advice = f"does it run there (journalctl -u godwit-agent), and is {line.address} reached from here?"
        yield _check(subject, Verdict.FAILURE, line.error, advice)
        return
    wrong = [_check(subject, *each) for each in (*_of_speed(line), *_of_clock(line), *_of_release(line))]
    yield from wrong
    if not any(check.is_trouble for check in wrong):
        figures = f"{line.round_s * 1000:.1f} ms, {as_bytes(int(line.bytes_s))}/s, its clock {round(line.ahead_s * 1000):+d} ms"
        yield _check(subject, Verdict.OK, figures)


def _of_speed(line: Line) -> Iterator[tuple[Verdict, str, str]]:
    if line.round_s >= SLOW_LINE_S:
        text = f"there and back takes {line.round_s * 1000:.0f} ms"
        yield Verdict.NOTE, text, "recalls and changes wait for that: ping, and who loads the line or the server?"
    if line.bytes_s < SLOW_LINE_BYTES_S:
        text = f"{as_bytes(int(line.bytes_s))} come through in a second"
        yield Verdict.NOTE, text, "ethtool: at what speed do both ends run? Who loads the line?"


def _of_clock(line: Line) -> Iterator[tuple[Verdict, str, str]]:
    off_s = abs(line.ahead_s) - line.unsure_s
    if off_s >= CLOCK_NOTED_S:
        side = "ahead" if line.ahead_s > 0 else "behind"
        text = f"its clock is {abs(line.ahead_s):.1f} s {side} of this machine's"
        advice = "chronyc tracking, or timedatectl, on both: times of files are those of the server that writes them"
        yield Verdict.WARNING if off_s >= CLOCK_WARNED_S else Verdict.NOTE, text, advice


def _of_release(line: Line) -> Iterator[tuple[Verdict, str, str]]:
    if line.machine is not None and line.machine.release != RELEASE:
        text = f"its agent is of Godwit {line.machine.release}, this is {RELEASE}"
        yield Verdict.WARNING, text, "upgrade the older one; was it restarted since it was upgraded?"


def judge_owners(machines: Mapping[str, MachineInfo]) -> Iterator[Check]:
    """Whether names and numbers of users and groups mean the same everywhere, where there are any."""
    differing = [
        *(f"user {text}" for text in differences({server: told.users for server, told in machines.items()})),
        *(f"group {text}" for text in differences({server: told.groups for server, told in machines.items()})),
    ]
    advice = "files belong to numbers: give both servers the same (usermod -u, groupmod -g, or one directory for all)"
    for text in differing[:SHOWN]:
        yield _check("owners", Verdict.WARNING, text, advice)
    if len(differing) > SHOWN:
        yield _check("owners", Verdict.WARNING, f"and {len(differing) - SHOWN} more that differ", advice)
    if machines and not differing:
        users = len({owner.number for told in machines.values() for owner in told.users})
        text = f"users and groups from 1000 on have the same numbers on all servers ({users} users, {len(machines)} servers)"
        yield _check("owners", Verdict.OK, text)


def differences(owners: Mapping[str, Sequence[Owner]]) -> list[str]:
    """A sentence for each name with several numbers, and for each number with several names; one about both is enough."""
    by_name: dict[bytes, dict[int, str]] = {}  # the first server that says so
    by_number: dict[int, dict[bytes, str]] = {}
    for server in sorted(owners):
        for owner in owners[server]:
            by_name.setdefault(owner.name, {}).setdefault(owner.number, server)
            by_number.setdefault(owner.number, {}).setdefault(owner.name, server)
    found = [
        f"{as_shown(name)} is " + ", ".join(f"{number} on {server}" for number, server in sorted(there.items()))
        for name, there in sorted(by_name.items())
        if len(there) > 1
    ]
    told = {name for name, there in by_name.items() if len(there) > 1}
    return found + [
        f"{number} is " + ", ".join(f"{as_shown(name)} on {server}" for name, server in sorted(there.items()))
        for number, there in sorted(by_number.items())
        # Of accounts that are several names for one number on one machine that is meant.
        if len(there) > 1 and len(set(there.values())) > 1 and not told & there.keys()
    ]


def judge_status(status: Status | GodwitError) -> Iterator[Check]:
    """What the manager says of the network; or that none says anything."""
    if isinstance(status, GodwitError):
        yield Check(Field.HEALTH, "manager", Verdict.FAILURE, str(status), "godwit manager show")
        return
    found = findings(status)
    for finding in found:
        yield Check(Field.HEALTH, "network", Verdict.WARNING, finding.text, finding.look)
    for info in status.servers:
        counts = info.counts
        if counts is None:
            continue
        if counts.why_not_passed and counts.why_not_passed != TURNED_OFF:
            text = f"its mount does not pass files through: {counts.why_not_passed}"
            yield Check(Field.HEALTH, info.server, Verdict.NOTE, text, "docs/passthrough.md")
        if counts.answerer == Answerer.PYTHON:
            text = "its mount has no C extension: Python answers the kernel"
            yield Check(
                Field.HEALTH, info.server, Verdict.NOTE, text, "install Godwit there with a C compiler, or from its package"
            )
    if not found:
        yield Check(Field.HEALTH, "network", Verdict.OK, summary(status))


def _check(subject: str, verdict: Verdict, text: str, advice: str = "") -> Check:
    return Check(Field.NETWORK, subject, verdict, text, advice)
