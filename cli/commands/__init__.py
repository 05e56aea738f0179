"""The commands: `godwit fsck` is `fsck.py`, `godwit volumes add` is `volumes/add.py`."""
