"""`godwit accept`: goes on with what is left of a file whose only current replica is damaged."""

from typing import Annotated

import typer

from cli.display.render import print_json, print_line
from cli.network.ask import talk
from cli.network.names import InoOption, PathArgument, find_inode, require_one
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.messages import AcceptContent, Node
from cluster.rpc.conversation import Asker


def accept(
    path: PathArgument = None,
    ino: InoOption = None,
    older: Annotated[bool, typer.Option("--older", help="Take the newest older copy of another volume instead.")] = False,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Go on with what is left of a damaged file. For one that fails with EIO since the only current copy is damaged.

    `godwit where` says what is wrong. What is there becomes the file's content; with --older, what the newest older copy has, and
    what was there is kept beside it under a conflict name. Restore the file from a backup instead if you have one.

    \b
    Examples:
      godwit accept /mnt/godwit/projects/plan.txt
      godwit accept --ino 4711 --older
    """
    require_one(path, ino)
    target = find_target(root)

    async def act(asker: Asker) -> Node:
        return await asker(AcceptContent(await find_inode(asker, target, path, ino), older))

    node = talk(target, timeout, act)
    if as_json:
        print_json({"accepted": {"ino": node.ino, "version": node.version, "dirty": node.dirty}})
    else:
        print_line(f"inode {node.ino} goes on with {'an older copy' if older else 'what its home has'}")
