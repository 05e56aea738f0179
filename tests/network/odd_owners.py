"""An agent on whose machine users have other numbers: the real program, with another list of users.

python -m tests.network.odd_owners --config FILE
"""

import os
import pwd
import sys
from pathlib import Path

import agent.main
from cli.commands.run import run_part

NAME = "differing"
VARIABLE = "ODD_OWNER"  # its number on the machine of this agent


def users() -> list[pwd.struct_passwd]:
    number = int(os.environ[VARIABLE])
    return [pwd.struct_passwd((NAME, "x", number, number, "", "/", "/bin/sh"))]


if __name__ == "__main__":
    vars(pwd)["getpwall"] = users
    run_part("agent", agent.main.run_agent, Path(sys.argv[-1]), "INFO")
