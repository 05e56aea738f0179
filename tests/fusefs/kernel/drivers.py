"""Builds the drivers that play recorded input through a part of the extension, with the sanitizers."""

import subprocess
from pathlib import Path

NATIVE = Path(__file__).parents[3] / "fusefs" / "kernel" / "native"
DRIVERS = Path(__file__).parent / "native"
OPTIONS = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pedantic", "-g", "-O1")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def built(folder: Path, part: str) -> Path:
    """The driver of `native/PART.c`, made in *folder*."""
    program = folder / "driver"
    sources = [str(DRIVERS / f"{part}_driver.c"), str(NATIVE / f"{part}.c")]
    subprocess.run(["gcc", *OPTIONS, *SANITIZE, "-I", str(NATIVE), *sources, "-o", str(program)], check=True)
    return program
