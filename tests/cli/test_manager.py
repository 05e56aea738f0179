"""`godwit manager show` asks the candidates themselves: it tells what they say, and when nobody is in office."""

import json
from pathlib import Path

import trio

from cli.commands.manager import ask_candidates, manager_of, office_object
from cli.network.target import Target
from cluster.decoding import Decode, from_msgpack
from cluster.messages import AskOffice, OfficeInfo
from cluster.rpc.serving import Handler, SendReply, listen
from lab.registry import unregister
from tests.cli.test_commands import fake_lab
from tests.cluster.test_session import free_address
from tests.support.runner import godwit
from tests.support.trust import credentials, trust_of


class _Says(Handler):
    def __init__(self, info: OfficeInfo) -> None:
        self._info = info

    def closed(self) -> None:
        return

    def at_once(self, request: AskOffice) -> OfficeInfo:
        assert request == AskOffice("test")
        return self._info

    async def handle(self, request: AskOffice, _body: bytes, _send: SendReply) -> None:
        raise AssertionError(f"it is answered at once: {request}")


async def test_candidates_that_others_name_are_asked_too() -> None:
    """s1 is configured, s2 it names; s3 does not answer. s2 is in office, in a newer term than s1 has read."""
    one, two, three = free_address(), free_address(), free_address()
    names = [one, two, three]
    infos = {
        one: OfficeInfo("s1", True, 90.0, True, "s1", 4, 70, one, names),
        two: OfficeInfo("s2", True, 1.25, True, "s2", 5, 81, two, [two]),
    }
    answers: dict[str, OfficeInfo | None] = {}

    async with trio.open_nursery() as nursery:
        for address, info in infos.items():
            decoder: Decode[AskOffice] = from_msgpack(AskOffice)
            await nursery.start(
                listen, address, decoder, lambda _peer, info=info: _Says(info), credentials(info.server, "manager")
            )
        target = Target(Path(trust_of("s1")), (one,), (), "")
        answers.update(await trio.to_thread.run_sync(ask_candidates, target, 5.0))
        nursery.cancel_scope.cancel()
    assert answers == {**infos, three: None}
    assert manager_of(answers) == infos[two]
    shown = office_object(answers)
    assert shown["candidates"] == [
        {"server": server, "address": address, "answers": server is not None, "hears": True if server else None}
        for address, server in sorted([(one, "s1"), (two, "s2"), (three, None)])
    ]
    del shown["candidates"]
    assert shown == {"server": "s2", "term": 5, "address": two, "in_office_s": 1.2, "beat": 81}


def test_nobody_in_office_is_said_and_3(tmp_path: Path) -> None:
    address = free_address()
    lab = fake_lab(tmp_path / "lab", address)
    try:
        done = godwit("manager", "show", "--root", str(lab.root))
        assert done.returncode == 3
        assert done.stdout.startswith("nobody is in office")
        done = godwit("manager", "show", "--json", "--root", str(lab.root))
        assert done.returncode == 3
        assert json.loads(done.stdout) == {
            "server": None,
            "term": None,
            "address": None,
            "in_office_s": None,
            "beat": None,
            "candidates": [{"server": None, "address": address, "answers": False, "hears": None}],
        }
    finally:
        unregister(lab.root)
