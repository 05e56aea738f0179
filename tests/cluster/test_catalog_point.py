"""Which catalog may be worked with: pure comparison, and a memory that survives whatever the disk does."""

from pathlib import Path

import pytest

from cluster.catalog_point import CatalogMemory, CatalogPoint, Verdict, judge, later, refusal, remembered
from cluster.errors import Refused

HERE, THERE = "here", "there"


def point(catalog: str = HERE, generation: int = 1, term: int = 5, beat: int = 50) -> CatalogPoint:
    return CatalogPoint(catalog, generation, term, beat)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (point(), Verdict.GOOD),
        (point(beat=51), Verdict.GOOD),
        (point(beat=49), Verdict.OLDER),
        (point(term=6, beat=0), Verdict.GOOD),
        (point(term=4, beat=900), Verdict.OLDER),
        (point(generation=2, term=1, beat=0), Verdict.GOOD),
        (point(generation=0, term=9, beat=900), Verdict.OLDER),
        (point(THERE), Verdict.FOREIGN),
        (point(THERE, generation=9), Verdict.FOREIGN),
    ],
)
def test_what_a_catalog_is_to_who_remembers_a_point(found: CatalogPoint, verdict: Verdict) -> None:
    assert judge(point(), found) is verdict
    error = refusal(point(), found, "s1")
    assert (error is None) == (verdict is Verdict.GOOD)
    if error is not None:
        assert str(found) in str(error)
        assert str(point()) in str(error)
        assert "godwit db restore" in str(error)
        assert ("godwit db accept-rollback" in str(error)) == (verdict is Verdict.OLDER)


def test_who_remembers_nothing_takes_any_catalog(tmp_path: Path) -> None:
    assert judge(None, point(THERE)) is Verdict.GOOD
    memory = CatalogMemory(tmp_path / "state", "manager")
    assert memory.load() is None
    memory.check(point(), "s1")
    assert memory.point == point()


def test_what_was_saved_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    memory = CatalogMemory(tmp_path / "state", "manager")
    memory.check(point(), "s1")
    memory.save(memory.point)
    again = CatalogMemory(tmp_path / "state", "manager")
    assert again.load() == point()
    with pytest.raises(Refused, match="older"):
        again.check(point(beat=49), "s1")
    assert again.point == point()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["catalog-manager.json"]


def test_a_server_remembers_the_newest_that_any_of_its_processes_has_seen(tmp_path: Path) -> None:
    assert remembered(tmp_path) is None
    for role, term in (("manager", 3), ("agent", 7)):
        CatalogMemory(tmp_path, role).save(point(term=term))
    assert remembered(tmp_path) == point(term=7)
    assert later(point(term=3), None) == point(term=3)


def test_a_disk_that_does_not_take_it_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").write_text("in the way")
    memory = CatalogMemory(tmp_path / "state", "agent")
    assert memory.load() is None
    memory.save(point())
    assert "cannot remember the catalog's point" in caplog.text
    caplog.clear()
    (tmp_path / "state").unlink()
    memory.save(point())
    assert CatalogMemory(tmp_path / "state", "agent").load() == point()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"catalog": "x"}', b'{"term": 1e999}'])
def test_a_damaged_memory_is_refused_and_named(tmp_path: Path, content: bytes) -> None:
    memory = CatalogMemory(tmp_path, "manager")
    memory.path.write_bytes(content)
    with pytest.raises(Refused, match=str(memory.path)):
        memory.load()
