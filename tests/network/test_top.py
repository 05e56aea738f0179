"""`godwit top` on a real network, in a real terminal."""

import re

from cli import exits
from lab.lab import Lab
from tests.support.terminals import LEFT, in_terminal


def is_whole(lines: list[str], height: int) -> bool:
    """Whether a drawing of that many lines shows all servers with their rates."""
    servers = [line.split() for line in lines if re.match(r"s\d", line)]
    return len(lines) == height and len(servers) == 3 and all(words[-4] != "-" for words in servers)


def test_it_shows_the_network_until_q(network: Lab) -> None:
    with in_terminal(["top", "-d", "0.5", "--root", str(network.root)]) as terminal:
        before = terminal.modes()
        lines = terminal.wait_for(lambda drawn: is_whole(drawn, 24), "all servers with their rates")
        assert "manager s" in lines[0]
        assert max(map(len, lines)) <= 80
        assert "EVENTS" in lines
        assert lines[-1].startswith("q  quit")
        terminal.resize(110, 40)
        terminal.wait_for(lambda drawn: is_whole(drawn, 40), "it fills a larger terminal")
        terminal.resize(60, 12)
        lines = terminal.wait_for(lambda drawn: len(drawn) == 12, "it fits a smaller one")
        assert max(map(len, lines)) <= 60
        terminal.type(b" ")
        assert terminal.modes() != before
        terminal.type(b"q")
        assert terminal.wait() == 0
        assert terminal.written.rstrip().endswith(LEFT)
        assert terminal.modes() == before


def test_ctrl_c_ends_it(network: Lab) -> None:
    with in_terminal(["top", "--root", str(network.root)]) as terminal:
        before = terminal.modes()
        terminal.wait_for(lambda drawn: len(drawn) == 24, "it draws")
        terminal.type(b"\x03")
        assert terminal.wait() == exits.INTERRUPTED
        assert b"Traceback" not in terminal.written
        assert LEFT in terminal.written
        assert terminal.modes() == before
