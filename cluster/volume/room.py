"""When a volume is nearly full: mounts put no new files there as long as there is another, and people are told."""

NEARLY_FULL_PART = 50  # less than a fiftieth left
NEARLY_FULL_BYTES = 64 * 1024 * 1024
SMALL_PART = 20  # of a small volume, 64 MiB may be most: then a twentieth counts


def is_nearly_full(total_bytes: int, free_bytes: int) -> bool:
    return free_bytes < max(total_bytes // NEARLY_FULL_PART, min(NEARLY_FULL_BYTES, total_bytes // SMALL_PART))
