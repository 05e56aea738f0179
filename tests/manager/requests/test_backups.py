"""The manager backs its catalog up by itself, tells of it, and agents can fetch what it has made."""

from pathlib import Path

import msgspec
import pytest
import trio
from blake3 import blake3

from cluster.config import BackupConfig
from cluster.errors import Refused
from cluster.health import findings
from cluster.messages import BackupInfo, GetBackup, GetStatus, ListEvents, ReadBackup
from manager.catalog.backup_folder import BackupFolder
from manager.catalog.verification import verify
from manager.workers.backups import backup_loop
from tests.manager.office import Office, in_office, until

EVERY_S = 0.05


def set_backup(office: Office, folder: Path, **settings: object) -> None:
    assert office.term is not None
    backup = msgspec.convert({"every_s": EVERY_S, "directory": str(folder), **settings}, BackupConfig)
    office.term.config = msgspec.structs.replace(office.term.config, backup=backup)
    office.term.backups = BackupFolder(office.term.config)


async def kinds(office: Office) -> list[str]:
    return [event.kind for event in (await office.admin.ask(ListEvents(kind="catalog"))).events]


async def test_a_backup_is_made_and_fetched(url: str, tmp_path: Path) -> None:
    async with in_office(url) as office, trio.open_nursery() as nursery:
        set_backup(office, tmp_path / "kept", every_s=1.0)
        assert office.term is not None
        agent = await office.peer("s1", "agent")
        assert await agent.ask(GetBackup()) == BackupInfo()
        assert (await office.admin.ask(GetStatus())).backup_age_s == -1.0
        nursery.start_soon(backup_loop, office.term)

        async def is_told() -> bool:
            return "catalog-backed-up" in await kinds(office)

        await until(is_told, 30.0)
        info = await agent.ask(GetBackup())
        parts = [(await agent.ask(ReadBackup(info.name, offset, 50_000))).data for offset in range(0, info.size, 50_000)]
        content = b"".join(parts)
        assert (len(content), blake3(content).digest()) == (info.size, info.digest)
        (tmp_path / "fetched").write_bytes(content)
        assert verify(tmp_path / "fetched").rows["inodes"] == 1
        with pytest.raises(Refused, match="no such backup"):
            await agent.ask(ReadBackup("../catalog.db", 0, 10))
        status = await office.admin.ask(GetStatus())
        assert (status.backup_problem, findings(status)) == ("", [])
        assert status.backup_age_s >= 0
        set_backup(office, tmp_path / "kept", to_volumes=False)
        assert await agent.ask(GetBackup()) == BackupInfo()
        nursery.cancel_scope.cancel()


async def test_a_failure_is_told_once_and_shown(sqlite_url: str, tmp_path: Path) -> None:
    async with in_office(sqlite_url) as office, trio.open_nursery() as nursery:
        (tmp_path / "kept").write_text("in the way")
        set_backup(office, tmp_path / "kept")
        assert office.term is not None
        nursery.start_soon(backup_loop, office.term)

        async def is_repeated() -> bool:
            events = (await office.admin.ask(ListEvents(kind="catalog"))).events
            return any(event.kind == "catalog-not-backed-up" and event.count > 1 for event in events)

        await until(is_repeated, 30.0)
        assert await kinds(office) == ["catalog-not-backed-up"]
        (finding,) = findings(await office.admin.ask(GetStatus()))
        assert finding.text.startswith("the catalog is not backed up: no backup in")
        (tmp_path / "kept").unlink()

        async def is_good() -> bool:
            return not (await office.admin.ask(GetStatus())).backup_problem

        await until(is_good, 30.0)
        assert (await kinds(office))[:2] == ["catalog-not-backed-up", "catalog-backed-up"]
        nursery.cancel_scope.cancel()
