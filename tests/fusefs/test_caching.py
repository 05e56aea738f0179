"""What may be kept: grants, floors, our own changes, names and listings, on a clock of the test's own."""

from collections.abc import Callable

import pytest

from cluster.messages import Grant, Node, Recall
from fusefs.caching.cache import CACHE_LIMITS, CacheLimits, Caching, EntryReply
from fusefs.caching.grants import Permit
from fusefs.caching.listings import Contents, KeptListing, Listed

ACCESS_S = 15.0
DIRECTORY, FILE, OTHER = 10, 11, 12
DIR_MODE, FILE_MODE = 0o040755, 0o100644


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Keeper:
    """A `Caching` with a clock and a manager's serials."""

    def __init__(self, limits: CacheLimits = CACHE_LIMITS) -> None:
        self.clock = Clock()
        self.caching = Caching(self.clock, limits=limits)
        self.serial = 0

    def grant(self, *inodes: int) -> Grant:
        self.serial += 1
        return Grant(self.serial, ACCESS_S, list(inodes))

    def take(self, *inodes: int) -> Permit:
        return self.caching.take(self.grant(*inodes), self.clock.now)

    def recall(self, *inodes: int) -> Recall:
        self.serial += 1
        return Recall(1, self.serial, list(inodes))


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


def node(ino: int = FILE, *, size: int = 0) -> Node:
    return Node(ino, DIR_MODE if ino == DIRECTORY else FILE_MODE, 1, 0, 0, 0, size, 0, 0, 0, 0, 0)


def seen_in_directory(keeper: Keeper, permit: Permit, name: bytes = b"name") -> EntryReply:
    return keeper.caching.entry_reply(node(), permit.until_s(FILE), DIRECTORY, name, permit.until_s(DIRECTORY))


def test_timeouts_are_what_is_left_since_before_the_question(keeper: Keeper) -> None:
    asked_s = keeper.clock.now
    grant = keeper.grant(DIRECTORY, FILE)
    keeper.clock.now += 4
    reply = seen_in_directory(keeper, keeper.caching.take(grant, asked_s))
    assert (reply.entry_s, reply.attr_s) == (ACCESS_S - 4, ACCESS_S - 4)


def test_each_inode_needs_its_own_grant(keeper: Keeper) -> None:
    assert seen_in_directory(keeper, keeper.take(FILE))[1:] == (0.0, ACCESS_S)
    assert seen_in_directory(keeper, keeper.take(DIRECTORY))[1:] == (ACCESS_S, 0.0)
    assert seen_in_directory(keeper, keeper.caching.take(None, keeper.clock.now))[1:] == (0.0, 0.0)


def test_nothing_is_kept_beyond_the_deadline(keeper: Keeper) -> None:
    permit = keeper.take(DIRECTORY, FILE)
    keeper.caching.keep_node(node(), permit)
    keeper.clock.now += ACCESS_S - 0.001
    assert keeper.caching.node(FILE) is not None
    keeper.clock.now += 0.002
    assert keeper.caching.node(FILE) is None
    assert not keeper.caching.may_keep(FILE)
    assert seen_in_directory(keeper, permit)[1:] == (0.0, 0.0)


def test_an_answer_from_before_a_recall_is_not_kept_whatever_arrives_first(keeper: Keeper) -> None:
    before = keeper.grant(DIRECTORY, FILE)
    asked_s = keeper.clock.now
    keeper.caching.recalled(keeper.recall(FILE))
    permit = keeper.caching.take(before, asked_s)
    keeper.caching.keep_node(node(), permit)
    assert permit.until_s(FILE) == 0.0
    assert keeper.caching.node(FILE) is None
    assert permit.until_s(DIRECTORY) > 0.0


def test_a_recall_voids_an_answer_that_is_still_being_worked_on(keeper: Keeper) -> None:
    permit = keeper.take(DIRECTORY, FILE)
    keeper.caching.recalled(keeper.recall(DIRECTORY))
    assert seen_in_directory(keeper, permit)[1:] == (0.0, ACCESS_S)


def test_what_is_granted_after_a_recall_may_be_kept(keeper: Keeper) -> None:
    keeper.caching.recalled(keeper.recall(FILE))
    assert keeper.take(FILE).until_s(FILE) > 0.0


def test_grants_of_an_earlier_manager_are_void_once_another_has_welcomed_us(keeper: Keeper) -> None:
    permit = keeper.take(FILE)
    assert permit.until_s(FILE) > 0.0
    keeper.caching.welcomed(1)
    assert permit.until_s(FILE) == 0.0
    assert keeper.take(FILE).until_s(FILE) == 0.0
    keeper.serial = 1 << 40
    assert keeper.take(FILE).until_s(FILE) > 0.0


def test_what_was_asked_before_our_own_change_was_through_is_not_kept(keeper: Keeper) -> None:
    asked_s = keeper.clock.now
    lookup = keeper.grant(FILE)
    keeper.clock.now += 1
    own = keeper.caching.changed([FILE], keeper.grant(FILE), asked_s)
    keeper.caching.keep_node(node(size=2), own)
    late = keeper.caching.take(lookup, asked_s)
    keeper.caching.keep_node(node(size=1), late)
    assert late.until_s(FILE) == 0.0
    kept = keeper.caching.node(FILE)
    assert kept is not None
    assert kept[0].size == 2
    assert own.until_s(FILE) == asked_s + ACCESS_S


def test_our_own_change_drops_what_is_kept_but_not_the_lease(keeper: Keeper) -> None:
    permit = keeper.take(DIRECTORY, FILE)
    keeper.caching.keep_node(node(), permit)
    keeper.caching.keep_listing(DIRECTORY, KeptListing([Listed(3, b"name", node(), permit)], 1, permit))
    keeper.caching.changed([DIRECTORY, FILE], None, keeper.clock.now)
    assert keeper.caching.node(FILE) is None
    assert keeper.caching.listing(DIRECTORY) is None
    assert keeper.caching.may_keep(DIRECTORY)
    assert sorted(keeper.caching.leased()) == [DIRECTORY, FILE]


def test_a_renewal_prolongs_what_is_good_and_revives_nothing(keeper: Keeper) -> None:
    keeper.caching.keep_node(node(), keeper.take(FILE))
    keeper.clock.now += 10
    keeper.caching.renewed(keeper.grant(FILE), keeper.clock.now)
    keeper.clock.now += 10
    assert keeper.caching.node(FILE) is not None
    keeper.clock.now += ACCESS_S
    keeper.caching.renewed(keeper.grant(FILE), keeper.clock.now)
    assert keeper.caching.node(FILE) is None
    assert keeper.caching.may_keep(FILE)


def test_what_is_recalled_names_what_the_kernel_may_have(keeper: Keeper) -> None:
    permit = keeper.take(DIRECTORY, FILE)
    seen_in_directory(keeper, permit, b"one")
    keeper.caching.entry_reply(None, 0.0, DIRECTORY, b"absent", permit.until_s(DIRECTORY))
    (directory, file, unknown) = keeper.caching.recalled(keeper.recall(DIRECTORY, FILE, OTHER))
    assert set(directory.names) == {b"one", b"absent"}
    assert (file.names, file.parents) == ({}, {DIRECTORY})
    assert (unknown.names, unknown.parents) == ({}, set())


def test_names_that_have_run_out_need_not_be_dropped(keeper: Keeper) -> None:
    keeper.caching.limit_names(1.0)
    assert seen_in_directory(keeper, keeper.take(DIRECTORY), b"old").entry_s == 1.0
    keeper.clock.now += 2
    seen_in_directory(keeper, keeper.take(DIRECTORY), b"new")
    assert set(keeper.caching.recalled(keeper.recall(DIRECTORY))[0].names) == {b"new"}


def test_a_renamed_entry_is_believed_under_its_new_name(keeper: Keeper) -> None:
    seen_in_directory(keeper, keeper.take(DIRECTORY, OTHER), b"old")
    assert keeper.caching.moved_name((DIRECTORY, b"old"), (OTHER, b"new"), exchange=False) == 0.0
    assert keeper.caching.given_ino(DIRECTORY, b"old") is None
    assert set(keeper.caching.recalled(keeper.recall(OTHER))[0].names) == {b"new"}


def test_a_renamed_entry_whose_new_directory_is_not_leased_must_be_forgotten(keeper: Keeper) -> None:
    reply = seen_in_directory(keeper, keeper.take(DIRECTORY), b"old")
    until_s = keeper.clock.now + reply.entry_s
    assert keeper.caching.moved_name((DIRECTORY, b"old"), (OTHER, b"new"), exchange=False) == until_s


def test_a_name_that_is_just_being_taken_away_may_be_renamed_before_the_kernel_has_dropped_it(keeper: Keeper) -> None:
    reply = seen_in_directory(keeper, keeper.take(DIRECTORY), b"old")
    until_s = keeper.clock.now + reply.entry_s
    given_up = keeper.caching.recalled(keeper.recall(DIRECTORY))
    names = (DIRECTORY, b"old"), (OTHER, b"new")
    assert keeper.caching.moved_name(*names, exchange=False) == until_s
    keeper.caching.left(given_up)
    assert keeper.caching.moved_name(*names, exchange=False) == 0.0


def test_exchanged_entries_keep_their_times(keeper: Keeper) -> None:
    permit = keeper.take(DIRECTORY, FILE, OTHER)
    seen_in_directory(keeper, permit, b"one")
    keeper.caching.entry_reply(None, 0.0, OTHER, b"two", permit.until_s(OTHER))
    assert keeper.caching.moved_name((DIRECTORY, b"one"), (OTHER, b"two"), exchange=True) == 0.0
    assert keeper.caching.given_ino(DIRECTORY, b"one") == 0
    assert keeper.caching.given_ino(OTHER, b"two") == FILE


def test_the_bound_of_names_is_kept_and_makes_room_for_new_ones() -> None:
    keeper = Keeper(CacheLimits(names_max=3))
    permit = keeper.take(DIRECTORY)
    given = [seen_in_directory(keeper, permit, b"%d" % number).entry_s > 0 for number in range(5)]
    assert given == [True, True, True, False, False]
    keeper.clock.now += ACCESS_S + 1
    assert seen_in_directory(keeper, keeper.take(DIRECTORY), b"later").entry_s > 0


def test_what_was_granted_longest_ago_is_given_back_unless_it_is_open() -> None:
    keeper = Keeper(CacheLimits(cached_max=5, give_back_many=2))
    for ino in range(20, 26):
        keeper.take(ino)
    given_up, serial = keeper.caching.give_back(lambda ino: ino == 20)
    assert [item.ino for item in given_up] == [21, 22]
    assert serial == keeper.serial
    assert not keeper.caching.may_keep(21)
    assert keeper.caching.may_keep(20)
    assert keeper.caching.give_back(lambda _ino: False) == ([], 0)


def test_a_new_manager_is_told_of_what_the_kernel_is_still_forgetting(keeper: Keeper) -> None:
    keeper.take(FILE)
    given_up = keeper.caching.recalled(keeper.recall(FILE))
    again = keeper.caching.recalled(keeper.recall(FILE))
    assert keeper.caching.leased() == [FILE]
    keeper.caching.left(given_up)
    assert keeper.caching.leased() == [FILE]
    keeper.caching.left(again)
    assert keeper.caching.leased() == []


def test_expired_leases_are_forgotten_with_their_floors(keeper: Keeper) -> None:
    keeper.take(FILE)
    keeper.clock.now += 5
    keeper.take(OTHER)
    keeper.caching.recalled(keeper.recall(DIRECTORY))
    keeper.clock.now += ACCESS_S - 4
    assert [item.ino for item in keeper.caching.expired()] == [FILE]
    keeper.clock.now += ACCESS_S
    assert [item.ino for item in keeper.caching.expired()] == [OTHER]
    assert len(keeper.caching) == 0


ORDERS: dict[str, Callable[[Keeper, Grant, float], Permit]] = {
    "recall first": lambda keeper, grant, asked_s: (
        keeper.caching.recalled(keeper.recall(FILE)),
        keeper.caching.take(grant, asked_s),
    )[1],
    "answer first": lambda keeper, grant, asked_s: (
        keeper.caching.take(grant, asked_s),
        keeper.caching.recalled(keeper.recall(FILE)),
    )[0],
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_listing_is_kept_only_if_nothing_was_recalled_since_its_first_page(keeper: Keeper, order: str) -> None:
    permit = ORDERS[order](keeper, keeper.grant(DIRECTORY, FILE), keeper.clock.now)
    keeper.caching.keep_listing(DIRECTORY, KeptListing([], 1, permit))
    assert keeper.caching.listing(DIRECTORY) is not None
    keeper.caching.recalled(keeper.recall(DIRECTORY))
    keeper.caching.keep_listing(DIRECTORY, KeptListing([], 1, permit))
    assert keeper.caching.listing(DIRECTORY) is None


def test_an_answer_that_our_own_later_change_has_overtaken_is_not_kept(keeper: Keeper) -> None:
    asked_s = keeper.clock.now
    opened = keeper.grant(FILE)
    keeper.clock.now += 1
    keeper.caching.changed([DIRECTORY, FILE], None, keeper.clock.now)  # an unlink, say, that was asked for and done meanwhile
    keeper.clock.now += 1
    assert keeper.caching.changed([], opened, asked_s).until_s(FILE) == 0.0
    assert keeper.caching.changed([FILE], keeper.grant(FILE), keeper.clock.now).until_s(FILE) > 0.0


def test_who_held_an_inode_without_a_gap_knows_that_nobody_changed_it(keeper: Keeper) -> None:
    assert keeper.caching.holding(FILE) is None
    keeper.take(FILE)
    first = keeper.caching.holding(FILE)
    keeper.clock.now += ACCESS_S / 2
    keeper.take(FILE)
    assert keeper.caching.holding(FILE) == first is not None
    keeper.caching.recalled(keeper.recall(FILE))
    assert keeper.caching.holding(FILE) is None
    keeper.take(FILE)
    second = keeper.caching.holding(FILE)
    assert second not in (None, first)
    keeper.clock.now += ACCESS_S
    assert keeper.caching.holding(FILE) is None
    keeper.take(FILE)  # before anybody noticed that it had run out
    assert keeper.caching.holding(FILE) not in (None, first, second)


def test_all_names_of_a_directory_are_known_as_long_as_its_listing_is_good_or_only_we_change_it(keeper: Keeper) -> None:
    permit = keeper.take(DIRECTORY, FILE)
    keeper.caching.keep_listing(DIRECTORY, KeptListing([Listed(3, b"name", node(), permit)], 1, permit))
    contents = keeper.caching.contents(DIRECTORY)
    assert contents is not None
    assert (contents.ino_of(b"name"), contents.ino_of(b"other")) == (FILE, 0)
    keeper.clock.now += 1
    ours = keeper.caching.changed([DIRECTORY], keeper.grant(DIRECTORY), keeper.clock.now)
    assert keeper.caching.contents(DIRECTORY) is None
    keeper.caching.keep_contents(DIRECTORY, Contents(contents.listing, {b"name": 0, b"other": OTHER}, ours))
    amended = keeper.caching.contents(DIRECTORY)
    assert amended is not None
    assert (amended.ino_of(b"name"), amended.ino_of(b"other"), amended.ino_of(b"third")) == (0, OTHER, 0)
    keeper.caching.recalled(keeper.recall(DIRECTORY))
    assert keeper.caching.contents(DIRECTORY) is None
    keeper.caching.keep_contents(DIRECTORY, amended)
    assert keeper.caching.contents(DIRECTORY) is None


def test_the_names_of_a_directory_are_known_no_longer_than_its_lease(keeper: Keeper) -> None:
    keeper.caching.keep_contents(DIRECTORY, Contents(None, {}, keeper.take(DIRECTORY)))
    assert keeper.caching.contents(DIRECTORY) is not None
    keeper.clock.now += ACCESS_S
    assert keeper.caching.contents(DIRECTORY) is None


def test_more_names_than_the_bound_are_not_kept() -> None:
    keeper = Keeper(CacheLimits(names_max=2))
    permit = keeper.take(DIRECTORY)
    keeper.caching.keep_contents(DIRECTORY, Contents(None, {b"1": 1, b"2": 2, b"3": 3}, permit))
    assert keeper.caching.contents(DIRECTORY) is None
