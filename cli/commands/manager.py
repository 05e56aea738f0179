"""`godwit manager …`: who is in office, what the candidates see of it, and stepping down.

Candidates are asked themselves, without a session, so that `show` works when there is no manager.
"""

import trio
import typer

from cli import exits
from cli.display.render import as_age, print_facts, print_json, print_line, print_table
from cli.network.ask import talk
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, Target, TimeoutOption, find_target
from cluster.errors import Unavailable
from cluster.messages import AskOffice, Heartbeat, OfficeInfo, StepDown
from cluster.rpc.connection import ask_once
from cluster.rpc.conversation import Asker
from cluster.trust.credentials import Credentials

ANSWER_S = 1.0  # candidates only say what they remember
POLL_S = 0.05  # while an election goes on, which takes seconds

app = typer.Typer(help="The manager's office.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def manager() -> None:
    pass


@app.command("show")
def show(root: RootOption = None, timeout: TimeoutOption = ANSWER_S, as_json: JsonOption = False) -> None:
    """Show who is the manager. And which candidates answer, and whether they hear it; ends with 3 if nobody is in office.

    Example: godwit manager show --json
    """
    target = find_target(root)
    answers = ask_candidates(target, timeout)
    found = manager_of(answers)
    if as_json:
        print_json(office_object(answers))
    else:
        print_office(answers)
    if found is None:
        raise typer.Exit(exits.UNREACHABLE)


@app.command("step-down")
def step_down(root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False) -> None:
    """Have another server take the office. Returns when one has it; a network of one server gets its manager back.

    Example: godwit manager step-down
    """
    target = find_target(root)
    before, after = talk(target, timeout, lambda asker: _replace_manager(asker, target.credentials.identity.cluster))
    if as_json:
        print_json({"before": holder_object(before), "manager": holder_object(after)})
    else:
        print_line(f"{after.server} is the manager now (term {after.term}); it was {before.server} (term {before.term})")


async def _replace_manager(asker: Asker, cluster: str) -> tuple[OfficeInfo, OfficeInfo]:
    before = await _present(asker, cluster, 0)
    # With the term: a repeat after the answer was lost must not depose the next manager.
    await asker(StepDown(before.term))
    return before, await _present(asker, cluster, before.term + 1)


async def _present(asker: Asker, cluster: str, term: int) -> OfficeInfo:
    """The manager of *term* or a later one, described by itself."""
    while True:
        await asker(Heartbeat())  # answered only by who is in office: so the session follows
        info = await asker(AskOffice(cluster))
        # A later term will do: the next manager may have lost the office at once.
        if info.in_office and info.term >= term:
            return info
        await trio.sleep(POLL_S)


# ------------------------------------------------------------------------------------------------ asking candidates


def ask_candidates(target: Target, timeout_s: float) -> dict[str, OfficeInfo | None]:
    """What each candidate says, by its address: those of the configuration, and those that they name."""
    return trio.run(_ask_all, target, timeout_s)


async def _ask_all(target: Target, timeout_s: float) -> dict[str, OfficeInfo | None]:
    answers: dict[str, OfficeInfo | None] = {}

    async def ask(address: str, nursery: trio.Nursery) -> None:
        info = answers[address] = await _ask_one(
            address, AskOffice(target.credentials.identity.cluster), target.credentials, timeout_s
        )
        # Servers that joined since this configuration was written.
        for other in info.candidates if info is not None else []:
            start(other, nursery)

    def start(address: str, nursery: trio.Nursery) -> None:
        if address not in answers:
            # Noted before it is asked, so that no two answers have it asked twice; None stays if it is silent.
            answers[address] = None
            nursery.start_soon(ask, address, nursery)

    async with trio.open_nursery() as nursery:
        for address in target.managers:
            start(address, nursery)
    return answers


async def _ask_one(address: str, request: AskOffice, credentials: Credentials, timeout_s: float) -> OfficeInfo | None:
    with trio.move_on_after(timeout_s):
        try:
            return await ask_once(address, request, credentials, timeout_s=timeout_s)
        except Unavailable:
            return None
    return None


def manager_of(answers: dict[str, OfficeInfo | None]) -> OfficeInfo | None:
    """Who says that it is in office, in the newest term."""
    holders = [info for info in answers.values() if info is not None and info.in_office]
    # A deposed manager that was stopped may still believe in its term.
    return max(holders, key=lambda info: info.term, default=None)


# ------------------------------------------------------------------------------------------------------- printing


def holder_object(info: OfficeInfo) -> dict[str, object]:
    """A manager for JSON; see docs/cli.md."""
    return {"server": info.server, "term": info.term, "address": info.address}


def office_object(answers: dict[str, OfficeInfo | None]) -> dict[str, object]:
    """The office for JSON; see docs/cli.md."""
    found = manager_of(answers)
    # Without a manager, how far the office had come when somebody last heard it.
    last = max((info for info in answers.values() if info is not None), key=lambda info: (info.term, info.beat), default=None)
    return {
        "server": found.server if found else None,
        "term": last.term if last else None,
        "address": found.address if found else None,
        "in_office_s": round(found.in_office_s, 1) if found else None,
        "beat": last.beat if last else None,
        "candidates": [
            {
                "server": info.server if info else None,
                "address": address,
                "answers": info is not None,
                # null also for a candidate that has not been up for long enough to say.
                "hears": info.hears if info else None,
            }
            for address, info in sorted(answers.items())
        ],
    }


def print_office(answers: dict[str, OfficeInfo | None]) -> None:
    found = manager_of(answers)
    if found is None:
        print_line("nobody is in office")
    else:
        print_facts(
            [
                ("manager", f"{found.server} at {found.address}"),
                ("term", found.term),
                ("in office", as_age(found.in_office_s)),
                ("beat", found.beat),
            ]
        )
    print_line()
    rows = [
        (info.server if info else "-", address, "yes" if info else "no", _yes_no(info.hears if info else None))
        for address, info in sorted(answers.items())
    ]
    print_table(("SERVER", "ADDRESS", "ANSWERS", "HEARS"), rows)


def _yes_no(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"
