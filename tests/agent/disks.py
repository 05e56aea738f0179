"""A file system in an image, and what is left of it when the power fails."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE_BYTES = 64 << 20


def _mount(image: Path, place: Path) -> None:
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True, timeout=60)


@contextmanager
def disk_in(folder: Path) -> Iterator[Path]:
    """An ext4 of its own, at `disk`, in the image beside it."""
    image, place = folder / "image", folder / "disk"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=60)
    _mount(image, place)
    (place / "lost+found").rmdir()
    try:
        yield place
    finally:
        for mounted in (place, folder / "afterwards"):
            subprocess.run(["umount", "-l", mounted], check=False, capture_output=True, timeout=60)


def power_fails(disk: Path) -> Path:
    """What is on the disk at this moment, mounted anew: without what the kernel had only in memory."""
    after = disk.with_name("afterwards")
    subprocess.run(["cp", "--sparse=always", disk.with_name("image"), disk.with_name("crashed")], check=True, timeout=60)
    _mount(disk.with_name("crashed"), after)
    return after


def flushes(disk: Path) -> int:
    """How often the cache of the disk's device was flushed."""
    source = subprocess.run(["findmnt", "-no", "SOURCE", disk], check=True, timeout=60, capture_output=True, text=True)
    return int(Path("/sys/block", Path(source.stdout.strip()).name, "stat").read_text().split()[15])
