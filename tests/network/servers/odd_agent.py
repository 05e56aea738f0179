"""An agent that answers oddly, as far as the file *CONFIG*.odd says: the real program, with one collaborator replaced.

python -m tests.network.servers.odd_agent --config FILE
"""

import sys
from pathlib import Path
from typing import Any

import agent.main
from agent.serving.dataserver import DataServer
from cli.commands.run import run_part
from cluster.errors import GodwitError
from cluster.messages import Done, ReadObject
from cluster.rpc.serving import Replies

ODD_NUMBER, OTHER_REPLY, UNEXPECTED = "an error number that is none", "a reply to something else", "an unexpected error"


def oddity(config: Path) -> Path:
    """What it says is what whoever reads an object gets; nothing odd if there is none."""
    return config.with_suffix(".odd")


class OddServer(DataServer):
    """Answers requests to read as it is told to."""

    async def handle(self, request: Any, body: bytes, send: Replies) -> Any:
        flag = oddity(Path(sys.argv[-1]))
        odd = flag.read_text() if isinstance(request, ReadObject) and flag.exists() else ""
        if odd == ODD_NUMBER:
            raise GodwitError("odd", 99_999)
        if odd == OTHER_REPLY:
            return Done()
        if odd == UNEXPECTED:
            raise ValueError("nobody had thought of this")
        return await super().handle(request, body, send)


if __name__ == "__main__":
    assert "DataServer" in vars(agent.main)
    vars(agent.main)["DataServer"] = OddServer
    run_part("agent", agent.main.run_agent, Path(sys.argv[-1]), "INFO")
