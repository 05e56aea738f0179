"""The authority is replaced in the catalog, step by step; whichever of catalog and files is behind is brought up."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from sqlalchemy import select, update

from cluster.errors import Refused
from cluster.messages import (
    AddServer,
    AuthorityState,
    CertificateInfo,
    CertificateRows,
    GetAuthorities,
    GetServer,
    Heartbeat,
    ListCertificates,
    RenewCertificate,
    RevokeServer,
    RotateAuthority,
    Rotation,
    ShowCertificate,
    WaitingFor,
)
from cluster.trust.authority import Authority, has_signed, load_certificates, new_key, number_of, own_certificate, request_for
from cluster.trust.believed import listing, revision_of
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Peer, Role
from cluster.trust.sealing import seal
from cluster.trust.tokens import parse_token
from manager.catalog.schema import authorities, invitations, servers
from manager.catalog.store import Transaction
from manager.changes.authorities import AHEAD, AuthorityRow, Believed, introduce, read_authorities, reconcile, take_step
from manager.own_certificate import keep_authorities
from manager.requests.connection import Connection
from manager.rules.authorities import Step
from manager.workers.authorities import LATE_S, SETTLE_S, authorities_loop
from tests.manager.office import Office, config, in_office
from tests.manager.requests.test_join import ask, invite, request
from tests.support.clocks import skip
from tests.support.trust import MASTER, authority, peer, trust_of

SECOND, THIRD = Authority.make("test", 2), Authority.make("test", 3)
sealed = partial(seal, master=MASTER, cluster="test")


def states(believed: Believed) -> dict[int, str]:
    return {row.number: row.state.value for row in believed.rows}


def numbers(text: bytes) -> list[int]:
    return [number_of(one) for one in load_certificates(text)]


async def show(office: Office, who: Peer, revision: int) -> None:
    async def no_send(_reply: Any, _body: Any) -> None:
        raise AssertionError("managers answer once")

    await Connection(office, "test", who).handle(ShowCertificate(revision), b"", no_send)


async def show_all(office: Office, number: int, revision: int, *but: Role) -> None:
    """As the processes of s1 do, and the command that has asked."""
    for role in Role:
        if role not in but:
            await show(office, peer("s1", role)._replace(authority=number), revision)
    await show(office, peer("admin", Role.ADMIN)._replace(authority=number), revision)


async def member(office: Office) -> None:
    """s1 is a candidate of the network."""
    await (await office.peer("s1", "agent")).volume("u1")
    await office.store.write(lambda tx: tx.execute(update(servers).values(manager="10.0.0.1:7400")).rowcount)


async def until_phase(office: Office, phase: str) -> Rotation:
    assert office.term is not None
    with trio.fail_after(20):
        # The memory follows the catalog, which is asked.
        while (office.term.believed.phase or "") != phase:
            await trio.sleep(0.02)
    found = await office.admin.ask(GetAuthorities())
    assert found.phase == phase
    return found


async def test_one_begins_as_soon_as_the_catalog_says_that_the_last_has_ended(office: Office) -> None:
    """Whoever types it again has been told that by the catalog; the memory follows a moment later."""
    assert office.term is not None
    await member(office)
    assert (await office.admin.ask(RotateAuthority(0))).phase == "introduced"
    before = office.term.believed, office.term.authority
    for step in (Step.SIGN, Step.DROP):
        await office.store.write(partial(take_step, step=step))
    assert (await office.admin.ask(GetAuthorities())).phase == ""
    assert (office.term.believed, office.term.authority) == before
    begun = await office.admin.ask(RotateAuthority(0))
    assert (begun.phase, [one.number for one in begun.authorities]) == ("introduced", [2, 3])


async def test_it_is_replaced_when_everybody_has_followed(office: Office) -> None:
    assert office.term is not None
    await member(office)
    agent = await office.peer("s1", "agent")
    assert (await agent.ask(Heartbeat(None, {}))).authorities == b""
    invited = await office.admin.ask(AddServer("s9"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(authorities_loop, office.term)
        begun = await office.admin.ask(RotateAuthority(0))
        assert (begun.phase, begun.revision, begun.expected) == ("introduced", 1, 5)
        assert {one.missing for one in begun.waiting} == {"shown", "belief"}
        # Who has asked is among those that must follow.
        assert WaitingFor("admin", "admin", "belief") in begun.waiting
        # A second command joins the first.
        assert (await office.admin.ask(RotateAuthority(0))).revision == 1
        told = (await agent.ask(Heartbeat(None, {}))).authorities
        assert (numbers(told), revision_of(told)) == ([1, 2], 1)
        assert (await agent.ask(Heartbeat(None, {}))).authorities == b""
        assert numbers((await agent.hello()).authorities) == [1, 2]

        await show_all(office, 1, 1, Role.MOUNT)
        await skip(5)
        waits = await office.admin.ask(GetAuthorities())
        assert (waits.phase, waits.waiting) == ("introduced", [WaitingFor("s1", "mount", "shown")])
        await show(office, peer("s1", Role.MOUNT), 1)
        signs = await until_phase(office, "leaving")
        assert {(one.number, one.state) for one in signs.authorities} == {(1, "leaving"), (2, "signs")}
        assert len(signs.waiting) == 5
        # What is signed from now on, and the list that comes with it.
        certified = await _renewed(office)
        assert numbers(certified.authorities) == [2, 1]
        assert has_signed(load_certificates(certified.authorities)[0], own_certificate(certified.certificate))
        again = await office.admin.ask(AddServer("s9"))
        pin = next(one.pin for one in signs.authorities if one.number == 2)
        assert parse_token(invited.token).pin == authority().pin
        assert parse_token(again.token).pin == pin

        await show_all(office, 2, 2)
        # Late: what a process has shown before.
        await show(office, peer("s1", Role.AGENT), 1)
        assert (await office.admin.ask(GetAuthorities())).waiting == []
        await skip(SETTLE_S / 2)
        assert (await office.admin.ask(GetAuthorities())).phase == "leaving"
        await skip(SETTLE_S)
        done = await until_phase(office, "")
        assert [(one.number, one.state, one.pin) for one in done.authorities] == [(2, "signs", pin)]
        assert (done.revision, numbers(office.term.believed.text), office.term.authority.pin) == (3, [2], pin)
        nursery.cancel_scope.cancel()
    listed: CertificateRows = await office.admin.ask(ListCertificates())
    assert [(one.server, one.role, one.authority) for one in listed.certificates] == [
        ("admin", "admin", 2),
        *(("s1", role, 2) for role in ("admin", "agent", "manager", "mount")),
    ]
    assert all(isinstance(one, CertificateInfo) and one.epoch == 1 for one in listed.certificates)


async def _renewed(office: Office) -> Any:
    async def no_send(_reply: Any, _body: Any) -> None:
        raise AssertionError("managers answer once")

    request = RenewCertificate(request_for(new_key()))
    return await Connection(office, "test", peer("s1", Role.AGENT)).handle(request, b"", no_send)


async def test_tokens_of_the_authority_before_are_taken_back(office: Office) -> None:
    """Managers cannot prove themselves by it any more to who has one."""
    assert office.term is not None
    await office.admin.ask(AddServer("s9"))
    await office.store.write(lambda tx: introduce(tx, SECOND, sealed(SECOND)))
    count = await office.store.read(lambda connection: len(connection.execute(select(invitations)).all()))
    assert count == 1
    await office.store.write(partial(take_step, step=Step.SIGN))
    count = await office.store.read(lambda connection: len(connection.execute(select(invitations)).all()))
    assert count == 0


async def test_the_next_manager_goes_on_with_it(url: str) -> None:
    async with in_office(url) as office:
        await member(office)
        await office.admin.ask(RotateAuthority(0))
        assert office.term is not None
        before = office.term.believed
    async with in_office(url, "s2") as office:
        assert office.term is not None
        assert office.term.believed == before
        assert office.term.authority.pin == authority().pin
        await office.store.write(partial(take_step, step=Step.SIGN))
    async with in_office(url) as office:
        assert office.term is not None
        assert states(office.term.believed) == {1: "leaving", 2: "signs"}
        assert office.term.authority.number == 2
        # Nobody needs the key of one that signs no more.
        assert {row.number: bool(row.sealed) for row in office.term.believed.rows} == {1: False, 2: True}


async def _reconciled(office: Office, listed: list[Authority], revision: int, signing: Authority) -> Believed:
    work = partial(reconcile, believed=[one.pem for one in listed], revision=revision, authority=signing, seal=sealed)
    return await office.store.write(work)


async def test_a_catalog_without_authorities_takes_those_of_the_files(office: Office) -> None:
    """As that of an earlier release, or one that `init` has just made: nothing changes for anybody."""
    found = await office.store.read(read_authorities)
    assert (found.revision, states(found), found.text) == (0, {1: "signs"}, authority().pem)


async def test_an_older_catalog_is_brought_up_to_the_files(office: Office) -> None:
    # The files are of a later time: the second has followed the first.
    found = await _reconciled(office, [SECOND, authority()], 7, SECOND)
    assert (found.revision, states(found)) == (7 + AHEAD, {1: "leaving", 2: "signs"})
    assert found.text == listing(7 + AHEAD, [SECOND.pem, authority().pem])
    found = await _reconciled(office, [SECOND], 8 + AHEAD, SECOND)
    assert (found.revision, states(found), found.text) == (8 + 2 * AHEAD, {2: "signs"}, listing(8 + 2 * AHEAD, [SECOND.pem]))
    assert found == await office.store.read(read_authorities)


async def test_one_that_is_introduced_needs_its_key(office: Office) -> None:
    # The catalog that had it is gone: everybody is told to believe it no more.
    found = await _reconciled(office, [authority(), SECOND], 7, authority())
    assert (found.revision, states(found)) == (8 + AHEAD, {1: "signs"})
    # And one that the catalog has goes on.
    await office.store.write(lambda tx: introduce(tx, THIRD, sealed(THIRD)))
    found = await _reconciled(office, [authority(), THIRD], 10 + AHEAD, authority())
    assert (found.revision, states(found)) == (10 + 2 * AHEAD, {1: "signs", 3: "introduced"})


async def test_files_that_are_behind_change_nothing_in_the_catalog(office: Office) -> None:
    await office.store.write(lambda tx: introduce(tx, SECOND, sealed(SECOND)))
    before = await office.store.write(partial(take_step, step=Step.SIGN))
    assert before.revision == 2
    for listed, revision in (([authority()], 0), ([authority(), SECOND], 1), ([authority(), SECOND], 2)):
        assert await _reconciled(office, listed, revision, authority()) == before


def test_a_candidate_gets_the_key_into_its_files(tmp_path: Path) -> None:
    folder = TrustFolder(tmp_path / "trust")
    shutil.copytree(trust_of("s1"), folder.path)
    mine = msgspec.structs.replace(config("sqlite://"), trust=str(folder.path))
    before = folder.authority.stat().st_ino
    introduced = Believed(1, (_row(authority(), AuthorityState.SIGNS), _row(SECOND, AuthorityState.INTRODUCED)))
    keep_authorities(mine, introduced)
    assert (numbers(folder.read_authorities()), folder.authority.stat().st_ino) == ([1, 2], before)
    signs = Believed(2, (_row(authority(), AuthorityState.LEAVING), _row(SECOND, AuthorityState.SIGNS)))
    keep_authorities(mine, signs)
    assert (numbers(folder.read_authorities()), folder.read_authority().pin) == ([2, 1], SECOND.pin)
    folder.write_master(bytes(32))
    with pytest.raises(Refused, match="cannot be opened"):
        keep_authorities(mine, Believed(3, (_row(THIRD, AuthorityState.SIGNS),)))
    assert (numbers(folder.read_authorities()), folder.read_authority().pin) == ([2, 1], SECOND.pin)


def _row(one: Authority, state: AuthorityState) -> Any:
    return AuthorityRow(one.number, one.pem, sealed(one), state)


async def test_a_term_does_not_begin_with_a_key_that_it_cannot_open(url: str) -> None:
    async with in_office(url) as office:

        def spoil(tx: Transaction) -> None:
            tx.execute(update(authorities).values(sealed=sealed(authority())[:-1] + b"\0\0"))

        await office.store.write(spoil)
    with pytest.raises(ExceptionGroup) as failed:
        await _begin(url)
    assert failed.group_contains(Refused, match="cannot be opened")


async def _begin(url: str) -> None:
    async with in_office(url):
        raise AssertionError("it has begun")


async def test_what_was_signed_for_who_joined_is_waited_for(office: Office) -> None:
    await ask(office, request(await invite(office, candidate=False)))
    listed: CertificateRows = await office.admin.ask(ListCertificates())
    assert [(one.server, one.role, one.authority, one.epoch) for one in listed.certificates] == [
        ("s4", role, 1, 1) for role in ("admin", "agent", "mount")
    ]
    begun = await office.admin.ask(RotateAuthority(0))
    assert {(one.server, one.role) for one in begun.waiting} >= {("s4", "agent"), ("s4", "mount"), ("s4", "admin")}


async def test_nobody_is_believed_to_know_what_was_not_told_yet(office: Office) -> None:
    await member(office)
    await show_all(office, 1, 1000)
    begun = await office.admin.ask(RotateAuthority(0))
    assert WaitingFor("s1", "agent", "belief") in begun.waiting


async def test_who_holds_it_up_for_long_has_a_problem(office: Office) -> None:
    assert office.term is not None
    await member(office)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(authorities_loop, office.term)
        await office.admin.ask(RotateAuthority(0))
        await skip(LATE_S / 2)
        assert (await office.admin.ask(GetServer("s1"))).info.problems == []
        await skip(LATE_S)
        with trio.fail_after(20):
            while not (found := (await office.admin.ask(GetServer("s1"))).info.problems):
                await trio.sleep(0.02)
        assert [problem for problem in found if "rotate-ca --status" in problem]
        await show_all(office, 1, 1)
        await until_phase(office, "leaving")
        assert not office.term.late
        nursery.cancel_scope.cancel()


async def test_commands_of_no_server_can_be_left_out(office: Office) -> None:
    with pytest.raises(Refused, match="there are"):
        await office.admin.ask(RevokeServer("desk"))
    await show(office, peer("desk", Role.ADMIN), 0)
    begun = await office.admin.ask(RotateAuthority(0))
    assert WaitingFor("desk", "admin", "belief") in begun.waiting
    await office.admin.ask(RevokeServer("desk"))
    found = await office.admin.ask(GetAuthorities())
    assert "desk" not in {one.server for one in found.waiting}
    listed: CertificateRows = await office.admin.ask(ListCertificates())
    assert "desk" not in {one.server for one in listed.certificates}
