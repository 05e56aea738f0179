"""When it is told that files are at risk, volumes are full, and that it is over."""

from cluster.events import EventKind
from manager.rules.events import Change, Told, View, changes
from manager.rules.placement import Place, reserve_bytes

GIB = 2**30


def place(free: int, *, up: bool = True, accepts: bool = True) -> Place:
    return Place(3, "s3", "d", 20 * GIB, free, up=up, counts=True, accepts=accepts)


def test_files_at_risk_are_told_once_and_again_when_it_is_ten_times_worse() -> None:
    at_risk = [Change(EventKind.FILES_AT_RISK, count=5)]
    assert changes(Told(), View(at_risk=5, is_safe=False)) == at_risk
    assert changes(Told(at_risk=5), View(at_risk=49, is_safe=False)) == []
    assert changes(Told(at_risk=5), View(at_risk=50, is_safe=False)) == [Change(EventKind.FILES_AT_RISK, count=50)]


def test_that_is_over_when_nothing_has_waited_for_a_while() -> None:
    assert changes(Told(at_risk=5), View(at_risk=0, is_safe=False)) == []
    assert changes(Told(at_risk=5), View(at_risk=0, is_safe=True)) == [Change(EventKind.FILES_SAFE)]
    assert changes(Told(), View(at_risk=0, is_safe=True)) == []


def test_a_volume_is_full_until_twice_the_reserve_is_free() -> None:
    full, room = [Change(EventKind.VOLUME_FULL, 3)], [Change(EventKind.VOLUME_ROOM, 3)]
    told = Told(full=frozenset({3}))
    reserve = reserve_bytes(place(0))
    assert changes(Told(), View(places={3: place(reserve - 1)})) == full
    assert changes(Told(), View(places={3: place(reserve)})) == []
    assert changes(told, View(places={3: place(reserve - 1)})) == []
    assert changes(told, View(places={3: place(2 * reserve - 1)})) == []
    assert changes(told, View(places={3: place(2 * reserve)})) == room


def test_of_a_volume_that_takes_nothing_for_another_reason_it_is_not_told() -> None:
    for one in (place(0, up=False), place(0, accepts=False)):
        assert changes(Told(), View(places={3: one})) == []


def test_damage_and_faults_of_the_catalog_are_over() -> None:
    assert changes(Told(damaged=True), View(damaged=1)) == []
    assert changes(Told(damaged=True), View()) == [Change(EventKind.DAMAGE_MENDED)]
    assert changes(Told(), View(damaged=1)) == []
    assert changes(Told(), View(catalog_fails=True)) == [Change(EventKind.CATALOG_FAULT)]
    assert changes(Told(catalog_fails=True), View(catalog_fails=True)) == []
    assert changes(Told(catalog_fails=True), View()) == [Change(EventKind.CATALOG_BACK)]
