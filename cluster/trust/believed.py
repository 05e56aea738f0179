"""The list of authorities that are believed, as text: PEM, with its revision in a comment before it.

First comes the authority that signs. Whoever has a certificate of another one of the list asks for a new one. A manager raises
the revision with each change; a list of a lower revision never replaces one of a higher. Lists that were never changed have none:
their revision is 0.
"""

import re
from collections.abc import Iterable

_REVISION = re.compile(rb"# revision ([0-9]{1,15})\n")


def listing(revision: int, certificates: Iterable[bytes]) -> bytes:
    """The list of these certificates (PEM), of which the first signs."""
    text = b"".join(certificates)
    return text if revision == 0 else b"# revision %d\n%b" % (revision, text)


def revision_of(text: bytes) -> int:
    """The revision of a list."""
    found = _REVISION.match(text)
    return 0 if found is None else int(found[1])
