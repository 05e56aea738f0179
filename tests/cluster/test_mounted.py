"""Which mount a path lies on, without touching any."""

from pathlib import Path

import pytest

from cluster import mounted

TABLE = b"""21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 8:2 / /srv rw - xfs /dev/sdb1 rw
23 22 0:40 / /srv/a\\040b rw - nfs4 host:/x rw
24 22 0:41 / /srv/twice rw - tmpfs one rw
25 24 0:42 / /srv/twice rw - tmpfs two rw
"""


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/", "/dev/sda1"),
        ("/home/x", "/dev/sda1"),
        ("/srv", "/dev/sdb1"),
        ("/srvother", "/dev/sda1"),
        ("/srv/a", "/dev/sdb1"),
        ("/srv/a b/c", "host:/x"),
        ("/srv/twice/c", "two"),
    ],
)
def test_the_innermost_uppermost_mount_counts(path: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_bytes(TABLE)
    monkeypatch.setattr(mounted, "MOUNTINFO", tmp_path / "mountinfo")
    found = mounted.mount_below(Path(path))
    assert found is not None
    assert found.source == source
