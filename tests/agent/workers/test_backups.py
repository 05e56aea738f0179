"""Agents keep the newest backups of the catalog on all their volumes, whole or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from cluster.messages import BACKUP_PART_MAX
from tests.agent.network import QUICK, Network, RunningAgent

pytestmark = pytest.mark.deadline(60)
HURRIED = replace(QUICK, backups_s=0.05)


def offer(net: Network, name: str, content: bytes, digest: bytes = b"") -> None:
    net.manager.backup = (name, len(content), digest or blake3(content).digest())
    net.manager.backup_content = content


async def start(net: Network, volumes: int = 2) -> RunningAgent:
    roots = [str(net.folder / f"vol{number}") for number in range(volumes)]
    return await net.start_with(net.config("s1", roots), HURRIED)


def kept(running: RunningAgent) -> list[dict[str, bytes]]:
    """What is in the folders of backups, also what is not whole."""
    return [{path.name: path.read_bytes() for path in layout.backups.glob("*")} for layout in running.layouts]


async def test_the_newest_two_are_on_all_volumes(net: Network) -> None:
    running = await start(net)
    contents = {f"catalog-{number}": bytes([number]) * (BACKUP_PART_MAX + 5) for number in (1, 2, 3)}
    for name, content in contents.items():
        offer(net, name, content)
        await net.manager.wait_for(lambda name=name: all(name in on for on in kept(running)), name)  # type: ignore[misc]
    newest = {name: contents[name] for name in ("catalog-2", "catalog-3")}
    await net.manager.wait_for(lambda: kept(running) == [newest] * 2, "older ones go")
    assert all((layout.backups / "catalog-3").stat().st_mode & 0o777 == 0o600 for layout in running.layouts)
    assert all(layout.backups.stat().st_mode & 0o777 == 0o700 for layout in running.layouts)


async def test_what_is_not_as_it_was_said_gets_no_name_and_takes_no_other_ones_place(
    net: Network, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start(net, 1)
    offer(net, "catalog-1", b"good")
    await net.manager.wait_for(lambda: kept(running) == [{"catalog-1": b"good"}], "kept")
    offer(net, "catalog-2", b"changed on the way", digest=b"d" * 32)
    await net.manager.wait_for(lambda: "is not what the manager said" in caplog.text, "compared")
    offer(net, "../../catalog-3", b"elsewhere")
    offer(net, "catalog-4", b"good again")
    await net.manager.wait_for(lambda: "catalog-4" in kept(running)[0], "fetched after that")
    assert kept(running) == [{"catalog-1": b"good", "catalog-4": b"good again"}]
    assert not list(Path(net.folder).rglob("catalog-3*"))


async def test_a_volume_that_cannot_keep_it_has_a_problem_and_holds_up_no_other(net: Network) -> None:
    running = await start(net)
    full = running.layouts[0].backups
    full.write_text("in the way")
    offer(net, "catalog-1", b"content")
    await net.manager.wait_for(lambda: (running.layouts[1].backups / "catalog-1").exists(), "the other has it")

    def told() -> bool:
        return any("no backup of the catalog could be kept there" in text for text in net.manager.registrations[-1].problems)

    await net.manager.wait_for(told, "told")
    full.unlink()
    await net.manager.wait_for(lambda: kept(running)[0] == {"catalog-1": b"content"} and not told(), "mended")
