"""The manager's server dies, stalls, is cut off, or steps down, while the others work: they go on within `GAP_S`.

The bound is the product's, with the default configuration. Load runs on the mounts of the other servers, on files whose home
they are, and is checked afterwards: nothing failed, was lost, or was applied twice.

GODWIT_ELECTION_KILLS=100 ./dev test tests/network/servers/test_election.py -k killed
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from cli import exits
from cluster.config import credentials_of
from cluster.errors import GodwitError, NotManager
from cluster.messages import PROTOCOL, ROOT_INO, Hello, SetPolicy
from cluster.rpc.connection import connect
from cluster.rpc.wire import A_MANAGER
from cluster.trust.identity import Role
from lab.database import PROGRAMS
from lab.lab import Lab
from lab.state import PARTS
from tests.conftest import UNEXPECTED
from tests.support.conditions import godwit, stop_between_transactions, wait_until
from tests.support.load import Load
from tests.support.runner import godwit_process as run_godwit
from tests.support.runner import heed_interrupts

KILLS = int(os.environ.get("GODWIT_ELECTION_KILLS", "3"))  # with each database
GAP_S = 5.0
BEFORE = 20  # operations of each worker before the fault, and after it
TERM_S = 2.0
ASLEEP_COPIES = 5

needs_postgresql = pytest.mark.skipif(not list(PROGRAMS.glob("*/bin/postgres")), reason="no PostgreSQL: package postgresql")


@pytest.fixture(scope="module", params=[None, pytest.param("postgresql", marks=needs_postgresql)], ids=["sqlite", "postgresql"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One network for all tests, whole again after each."""
    made = Lab.create(tmp_path_factory.mktemp("election") / "lab", db=request.param)
    try:
        made.up()
        yield made
        for log in (made.log(server, part) for server in made.servers for part in PARTS):
            content = log.read_bytes()
            assert not any(mark in content for mark in UNEXPECTED), f"{log}:\n{content.decode(errors='replace')[-4000:]}"
    finally:
        made.down(purge=True)


def office(lab: Lab) -> dict[str, Any]:
    return godwit(lab, "manager", "show")


def whole(lab: Lab) -> dict[str, Any]:
    """Waits until every candidate answers and hears the manager; what `manager show` says then."""

    def is_whole() -> dict[str, Any] | None:
        done = run_godwit("manager", "show", "--json", "--root", str(lab.root))
        shown: dict[str, Any] = json.loads(done.stdout)
        everybody = all(candidate["hears"] for candidate in shown["candidates"])
        return shown if done.returncode == 0 and everybody else None

    return wait_until(is_whole, "all candidates hear a manager", 20)


@contextmanager
def load_on(lab: Lab, servers: list[str], name: str) -> Iterator[Callable[[], None]]:
    """Runs load on the mounts of *servers*; gives a function that waits until all workers have gone on; checks it all."""
    load = Load([lab.mount(server) for server in servers], name)

    def go_on() -> None:
        before = load.progress()
        wait_until(lambda: load.has_done(BEFORE, before), "the load goes on", 30)

    try:
        wait_until(lambda: load.has_done(BEFORE), "the load runs", 30)
        yield go_on
    finally:
        load.stop()
    load.check()
    print(f"{name}: longest pause {load.longest_gap_s():.2f} s")  # noqa: T201 – shown by pytest -rP
    assert load.longest_gap_s() < GAP_S


def others(lab: Lab, server: str) -> list[str]:
    return [other for other in lab.servers if other != server]


def test_the_managers_server_is_killed_again_and_again(lab: Lab) -> None:
    terms = []
    for number in range(KILLS):
        before = whole(lab)
        with load_on(lab, others(lab, before["server"]), f"killed{number}") as go_on:
            lab.kill(before["server"])
            go_on()
            after = office(lab)
        assert after["server"] != before["server"]
        terms += [before["term"], after["term"]]
        lab.start(before["server"])
        taken = _events(lab)[-1]
        assert (taken["kind"], taken["server"]) == ("office-taken", after["server"])
        assert taken["fields"] == {"term": after["term"], "before": before["server"]}
    assert terms == sorted(terms)


@contextmanager
def nobody_asks(lab: Lab) -> Iterator[None]:
    """Fails if a candidate had to ask whether others hear the manager: after an orderly end the office is simply taken."""
    logs = [lab.log(server, "manager") for server in lab.servers]
    before = [log.stat().st_size for log in logs]
    yield
    assert not any(b"hears no manager" in log.read_bytes()[size:] for log, size in zip(logs, before, strict=True))


@contextmanager
def followed(lab: Lab, *kinds: str) -> Iterator[None]:
    """Fails if `godwit events --follow` did not show exactly these kinds, each event once, when it is ended with Ctrl-C."""
    arguments = ["--follow", "--json", "--kind", "office", "--root", str(lab.root)]
    command = [sys.executable, "-bb", "-m", "cli.main", "events", *arguments]
    newest = _events(lab)[-1]["event"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as process:
        try:
            assert process.stdout is not None
            # Those before come first: from then on it follows.
            while json.loads(process.stdout.readline())["event"] < newest:
                pass
            yield
            happened = _events(lab, newest)
            shown = [json.loads(process.stdout.readline()) for _ in happened]
            process.send_signal(signal.SIGINT)
            rest, _nothing = process.communicate(timeout=20)
        finally:
            process.kill()
    assert [event["kind"] for event in shown] == list(kinds)
    assert (shown, rest, process.returncode) == (happened, "", exits.INTERRUPTED)


def _events(lab: Lab, after: int = 0) -> list[dict[str, Any]]:
    done = run_godwit("events", "--json", "--kind", "office", "--root", str(lab.root))
    return [event for event in map(json.loads, done.stdout.splitlines()) if event["event"] > after]


def test_stepping_down_under_load(lab: Lab) -> None:
    before = whole(lab)
    with followed(lab, "office-left", "office-taken"), nobody_asks(lab), load_on(lab, lab.servers, "stepping-down") as go_on:
        said = godwit(lab, "manager", "step-down")
        go_on()
    assert said["before"]["server"] == before["server"]
    assert said["manager"]["server"] != before["server"]
    assert (said["before"]["term"], said["manager"]["term"]) == (before["term"], before["term"] + 1)
    assert whole(lab)["term"] == before["term"] + 1


def test_a_manager_that_is_stopped_in_order_is_followed_at_once(lab: Lab) -> None:
    before = whole(lab)
    with nobody_asks(lab), load_on(lab, lab.servers, "stopped") as go_on:
        lab.kill(before["server"], "manager", signal.SIGTERM)
        go_on()
        assert office(lab)["term"] == before["term"] + 1
    lab.start(before["server"], "manager")
    assert whole(lab)["term"] == before["term"] + 1


def test_a_manager_that_slept_through_its_term_commits_nothing(lab: Lab) -> None:
    before = whole(lab)
    server = before["server"]
    rest = others(lab, server)
    log = lab.log(server, "manager")
    said = log.stat().st_size
    with load_on(lab, rest, "asleep") as go_on:

        def sleep_and_wake() -> None:
            go_on()
            assert office(lab)["server"] in rest
            lab.kill(server, "manager", signal.SIGCONT)

        with pytest.raises(NotManager):
            trio.run(ask_sleeper, lab, before, sleep_and_wake)
        wait_until(lambda: f"term {before['term']} is over".encode() in log.read_bytes()[said:], "it knows that its term is over")
        go_on()
        after = whole(lab)
    assert after["server"] in rest
    assert after["term"] == before["term"] + 1
    assert godwit(lab, "policy", "show", str(lab.mount(rest[0])))["policy"]["copies"] != ASLEEP_COPIES


async def ask_sleeper(lab: Lab, holder: dict[str, Any], sleep_and_wake: Callable[[], None]) -> None:
    """Puts the manager to sleep, sends it a mutation over a connection that it knows, and raises what it answers in the end."""

    async def wake() -> None:
        await trio.to_thread.run_sync(sleep_and_wake)

    async with trio.open_nursery() as nursery:
        config = lab.config(holder["server"])
        admin = credentials_of(config, Role.ADMIN)
        channel = await connect(holder["address"], nursery, admin, A_MANAGER, timeout_s=5)
        await channel.call(Hello(PROTOCOL, config.cluster, config.server, Role.ADMIN, 4711), timeout_s=5)
        await trio.to_thread.run_sync(stop_between_transactions, lab, holder["server"])
        nursery.start_soon(wake)
        failure = None
        try:
            await channel.call(SetPolicy(ROOT_INO, ASLEEP_COPIES, 1), timeout_s=60)
        except GodwitError as error:
            failure = error
        channel.close()
    if failure is not None:
        raise failure


def test_a_manager_that_is_cut_off_is_deposed_and_stays_so(lab: Lab) -> None:
    before = whole(lab)
    server = before["server"]
    rest = others(lab, server)
    with load_on(lab, rest, "cut") as go_on:
        lab.cut(server)
        try:
            go_on()
            after = office(lab)
            assert after["server"] in rest
        finally:
            lab.mend(server)
        healed = whole(lab)
        assert (healed["server"], healed["term"]) == (after["server"], after["term"])
        go_on()
        three_terms_later = time.monotonic() + 3 * TERM_S
        while time.monotonic() < three_terms_later:
            assert office(lab)["term"] == after["term"]
