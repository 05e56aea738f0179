"""The present attributes of an inode: the catalog's, with what the home's object says laid over while the file is dirty."""

import os
import stat

from cluster.content import content_of, overlay
from cluster.errors import Refused, Unavailable
from cluster.messages import Node, StatObject
from cluster.volume import VolumeLayout
from fusefs.openfiles import OpenFiles
from fusefs.peers import Peers


class Attributes:
    """Answers `stat` questions about nodes that the manager has just sent."""

    def __init__(self, peers: Peers, files: OpenFiles) -> None:
        self._peers = peers
        self._files = files

    async def live(self, node: Node) -> Node:
        """*node* as it is at this moment; with its last committed size and times if its home cannot be reached."""
        state = self._files.get(node.ino)
        if state is not None:
            state.saw(node)
        if not node.dirty or not stat.S_ISREG(node.mode):
            return node
        try:
            if state is not None and state.home is not None:
                return overlay(node, await state.home.stat())
            volume = await self._peers.volume(node.home_volume)
            if self._peers.is_local(volume):
                return overlay(node, content_of(os.stat(VolumeLayout.at(volume.path).object_path(node.ino))))
            reply = await self._peers.call(node.home_volume, StatObject(node.ino, node.home_volume, node.home_epoch))
            return overlay(node, reply.content)
        except (Unavailable, Refused, FileNotFoundError):
            return node
