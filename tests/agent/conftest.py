"""The small network that most tests of the agent work with."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.agent.network import Network, network


@pytest.fixture
def net(tmp_path: Path) -> AbstractAsyncContextManager[Network]:
    """A manager and no agents yet; everything is killed at the end."""
    return network(tmp_path)
