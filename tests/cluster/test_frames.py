"""The frame parser gives the same frames however the bytes are cut, and refuses what no peer of ours sends."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ProtocolError
from cluster.rpc.frames import BODY_MAX_BYTES, HEAD_MAX_BYTES, HEADER, PREFACE, Frame, FrameParser, pack

frames = st.lists(
    st.builds(Frame, st.integers(0, 2**64 - 1), st.binary(max_size=50), st.binary(max_size=200)),
    max_size=8,
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(sent=frames, cuts=st.lists(st.integers(min_value=0), max_size=30), preface=st.booleans())
def test_any_split_gives_the_same_frames(sent: list[Frame], cuts: list[int], preface: bool) -> None:
    data = (PREFACE if preface else b"") + b"".join(pack(*frame) for frame in sent)
    parser = FrameParser(expect_preface=preface)
    received = [frame for piece in pieces(data, cuts) for frame in parser.feed(piece)]
    assert received == sent


@given(sent=frames)
def test_byte_by_byte_gives_each_frame_with_its_last_byte(sent: list[Frame]) -> None:
    parser = FrameParser(expect_preface=False)
    for frame in sent:
        data = pack(*frame)
        for position in range(len(data) - 1):
            assert list(parser.feed(data[position : position + 1])) == []
        assert list(parser.feed(data[-1:])) == [frame]


@given(sent=frames, keep=st.integers(min_value=0))
def test_what_is_cut_off_gives_only_whole_frames(sent: list[Frame], keep: int) -> None:
    data = b"".join(pack(*frame) for frame in sent)
    received = list(FrameParser(expect_preface=False).feed(data[: keep % (len(data) + 1)]))
    assert received == sent[: len(received)]


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(min_value=0), max_size=10), preface=st.booleans())
def test_garbage_is_refused_or_waited_on_and_nothing_else(data: bytes, cuts: list[int], preface: bool) -> None:
    parser = FrameParser(expect_preface=preface)
    try:
        for piece in pieces(data, cuts):
            for frame in parser.feed(piece):
                assert pack(*frame) in data
    except ProtocolError:
        return


@given(data=st.binary(min_size=1, max_size=50))
def test_only_the_preface_opens_a_connection(data: bytes) -> None:
    parser = FrameParser(expect_preface=True)
    if PREFACE.startswith(data[: len(PREFACE)]):
        assert list(parser.feed(data[: len(PREFACE)])) == []
    else:
        with pytest.raises(ProtocolError, match="not a Godwit peer"):
            list(parser.feed(data))


@pytest.mark.parametrize(("head", "body"), [(HEAD_MAX_BYTES + 1, 0), (0, BODY_MAX_BYTES + 1), (2**32 - 1, 2**32 - 1)])
def test_too_large_a_frame_is_refused_before_its_bytes_come(head: int, body: int) -> None:
    first = pack(1, b"head", b"body")
    parser = FrameParser(expect_preface=False)
    assert list(parser.feed(first)) == [Frame(1, b"head", b"body")]
    with pytest.raises(ProtocolError, match="too large"):
        list(parser.feed(HEADER.pack(head, body, 2)))


def test_the_largest_frame_goes_through_and_a_larger_one_is_not_sent() -> None:
    frame = Frame(1, bytes(HEAD_MAX_BYTES), bytes(BODY_MAX_BYTES))
    assert list(FrameParser(expect_preface=False).feed(pack(*frame))) == [frame]
    for head, body in ((HEAD_MAX_BYTES + 1, 0), (0, BODY_MAX_BYTES + 1)):
        with pytest.raises(ProtocolError, match="too large to send"):
            pack(1, bytes(head), bytes(body))


def test_the_header_is_what_its_docstring_says() -> None:
    assert pack(7, b"ab", b"c") == struct.pack(">IIQ", 2, 1, 7) + b"abc"
