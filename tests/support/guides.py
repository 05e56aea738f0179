"""What the pages in docs/ say to type."""

import re
from pathlib import Path

DOCS = Path(__file__, "../../../docs").resolve()


def blocks(page: str, heading: str) -> list[str]:
    """The blocks of commands in a section of a page."""
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
