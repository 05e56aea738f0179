"""What tests of lost servers and of lost volumes begin with."""

from contextlib import AbstractAsyncContextManager

import pytest

from tests.manager.changes.scene import Scene, scene_on


@pytest.fixture
def scene(url: str) -> AbstractAsyncContextManager[Scene]:
    """Files with their homes on s1, which is lost; s2 is the manager's."""
    return scene_on(url)
