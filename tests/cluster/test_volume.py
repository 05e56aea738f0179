"""The layout of a volume and the record that every object carries."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Refused
from cluster.volume.layout import (
    RECORD_MAX_BYTES,
    RECORD_XATTR,
    ObjectRecord,
    VolumeLayout,
    display_path,
    read_record,
    write_record,
)


@pytest.fixture
def descriptor(tmp_path: Path) -> int:
    return os.open(tmp_path / "object", os.O_CREAT | os.O_RDWR)


def test_a_formatted_volume_says_who_it_is(tmp_path: Path) -> None:
    layout = VolumeLayout(tmp_path / "volume")
    identity = layout.format("test", "s1")
    assert layout.identity() == identity
    assert (identity.cluster, identity.server) == ("test", "s1")
    assert all(folder.is_dir() for folder in (layout.objects, layout.staging, layout.trash))
    with pytest.raises(Refused, match="neither empty nor a volume"):
        layout.format("test", "s1")


@pytest.mark.parametrize("text", [b"", b"uuid = 1", b"what = is this", b"\xff\xfe", b'uuid="u"\ncluster="c"\nserver="s"\nmore=1'])
def test_a_wrong_identity_is_refused_by_its_path(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "volume.toml").write_bytes(text)
    with pytest.raises(Refused, match=r"volume\.toml"):
        VolumeLayout(tmp_path).identity()


def test_what_is_no_volume_says_so(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is not a volume"):
        VolumeLayout(tmp_path).identity()


def test_objects_of_neighbouring_numbers_share_a_directory(tmp_path: Path) -> None:
    layout = VolumeLayout(tmp_path)
    layout.objects.mkdir()
    for ino in (1, 4095, 4096, 2**63 - 1):
        os.close(layout.create_object(ino))
        os.close(layout.open_object(ino, os.O_RDONLY))
        with pytest.raises(FileExistsError):
            layout.create_object(ino)
    assert layout.object_path(4095) == f"{tmp_path}/objects/0/4095"
    assert layout.object_path(4096) == f"{tmp_path}/objects/1/4096"
    with pytest.raises(FileNotFoundError):
        layout.open_object(2, os.O_RDONLY)


def test_records_come_back(descriptor: int) -> None:
    record = ObjectRecord(7, 3, 2, "ab" * 32, display_path(b"/a/\xff\xc3\xa4/b"), 0o100644, 1, 2, 10**18)
    write_record(descriptor, record)
    found = read_record(descriptor)
    assert found == record
    assert os.fsencode(found.path) == b"/a/\xff\xc3\xa4/b"


@given(path=st.binary(max_size=4096).map(lambda path: path.replace(b"\0", b"")))
def test_any_path_fits_and_its_end_is_kept(path: bytes) -> None:
    descriptor = os.memfd_create("object")
    try:
        os.setxattr(descriptor, RECORD_XATTR, b"")
    except OSError:
        os.close(descriptor)
        descriptor = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR)
    try:
        write_record(descriptor, ObjectRecord(7, 3, 2, "ab" * 32, display_path(path)))
        assert len(os.getxattr(descriptor, RECORD_XATTR)) <= RECORD_MAX_BYTES
        found = read_record(descriptor)
        assert found is not None
        assert display_path(path).endswith(found.path)
        assert len(path) > 250 or found.path == display_path(path)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"{}", b'{"ino": "x"}', b"\xff\xfe", json.dumps({"ino": 1}).encode()])
def test_an_unreadable_record_is_none(descriptor: int, value: bytes) -> None:
    assert read_record(descriptor) is None
    os.setxattr(descriptor, RECORD_XATTR, value)
    assert read_record(descriptor) is None


def test_a_volume_that_is_not_mounted_is_not_made_by_a_create(tmp_path: Path) -> None:
    layout = VolumeLayout(tmp_path / "unmounted")
    layout.root.mkdir()
    with pytest.raises(FileNotFoundError):
        layout.create_object(5000)
    assert list(layout.root.iterdir()) == []
