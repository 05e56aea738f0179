"""The addresses of all candidates that the processes of a server have learnt: kept over their ends.

The configuration names those that were there when the server was set up, for the first server its own alone. What a manager
names is written beside, in one file for each role in the server's state directory, replaced as a whole; who starts reads them
all. They are hints: a file that is damaged or cannot be written costs nothing but them.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cluster.decoding import Decode, from_json
from cluster.durable import read_file, replace_file
from cluster.errors import Malformed, error_text
from cluster.rpc.wire import parse_address

log = logging.getLogger(__name__)

KNOWN_MAX = 1000
ROLES = ("agent", "mount")  # those that learn
NAME = "candidates-{role}.json"

_decode: Decode[list[str]] = from_json(list[str])


class Candidates:
    """What one process, of this role, knows of the candidates. Blocks for as long as a small file takes; raises nothing."""

    def __init__(self, state: str | Path, role: str) -> None:
        self._path = Path(state) / NAME.format(role=role)
        self._written: frozenset[str] = frozenset()

    def learn(self, addresses: Sequence[str]) -> None:
        """Keeps these, and no others, if they are not those that are kept."""
        if frozenset(addresses) == self._written:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._path, msgspec.json.encode(list(addresses)), synced=False)
        except OSError as error:
            log.warning("cannot remember the addresses of managers in %s: %s", self._path, error_text(error, with_file=False))
        self._written = frozenset(addresses)


def known_candidates(state: str | Path, configured: Sequence[str]) -> list[str]:
    """Those of the configuration, and those that processes of this server have learnt."""
    known = list(configured)
    for path in (Path(state) / NAME.format(role=role) for role in ROLES):
        try:
            addresses = _decode(read_file(path))[:KNOWN_MAX]
            for address in addresses:
                parse_address(address)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # of a command whose user is not root: there are those of the configuration
        except (OSError, ValueError, Malformed) as error:
            log.warning("%s cannot be read, so it is done without: %s", path, error_text(error, with_file=False))
        else:
            known += addresses
    return list(dict.fromkeys(known))
