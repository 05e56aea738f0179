"""Existing files of a server become files of the network, while that runs."""

import json
import os
import shutil

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.cli.test_importing import make_tree, tree_of
from tests.support.conditions import wait_for_copies, wait_for_replicas
from tests.support.runner import godwit


def test_a_directory_is_imported_in_place_and_is_there_for_all(network: Lab, orderly_logs: None) -> None:
    source, target = network.volume("s1").parent / "old", network.mount("s1") / "imported"
    make_tree(source, 11, names=80)
    (source / "file").write_bytes(b"content")
    before = tree_of(source)
    inode = (source / "file").stat().st_ino
    try:
        done = godwit("import", str(source), str(target), "--root", str(network.root), "--json")
        assert (done.returncode, done.stderr) == (0, "")
        numbers = json.loads(done.stdout)
        assert (numbers["files"]["cloned"], numbers["files"]["copied"], numbers["problems"]) == (0, 0, [])
        assert os.listdir(source) == []
        for server in network.servers:
            assert tree_of(network.mount(server) / "imported") == before
        # Copies are made of nothing that is not as it was committed; then it is a file like any other.
        wait_for_copies(network)
        wait_for_replicas(network, str(target / "file"), 2)
        assert os.stat(VolumeLayout(network.volume("s1")).object_path((target / "file").stat().st_ino)).st_ino == inode
        with (network.mount("s2") / "imported/file").open("ab") as file:
            file.write(b" and more")
        assert (target / "file").read_bytes() == b"content and more"
    finally:
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(source, ignore_errors=True)
