"""Building and installing things on a mount: gcc and make, a virtual environment and pip."""

import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.modes import both_modes
from tests.support.running import need, run

pytestmark = [pytest.mark.programs, both_modes]

MAKEFILE = """\
CFLAGS = -O1 -Wall
program: main.o libwords.a
\t$(CC) -o $@ main.o -L. -lwords
libwords.a: greet.o count.o
\tar rcs $@ $^
%.o: %.c words.h
\t$(CC) $(CFLAGS) -c $<
clean:
\trm -f *.o *.a program
"""
SOURCES = {
    "words.h": "const char *greet(void);\nint count(const char *);\n",
    "greet.c": '#include "words.h"\nconst char *greet(void) { return "godwit"; }\n',
    "count.c": '#include "words.h"\n#include <string.h>\nint count(const char *word) { return (int)strlen(word); }\n',
    "main.c": '#include "words.h"\n#include <stdio.h>\nint main() { return printf("%s %d\\n", greet(), count(greet())) < 0; }',
    "Makefile": MAKEFILE,
}


def test_make_builds_a_program_that_runs(directory: Path) -> None:
    need("gcc", "gcc")
    make = need("make", "make")
    for name, text in SOURCES.items():
        (directory / name).write_text(text)
    run([make, "-j2", "CC=gcc"], cwd=directory)
    assert run([directory / "program"], cwd=directory) == "godwit 6\n"
    assert "up to date" in run([make, "CC=gcc"], cwd=directory)
    greeting = SOURCES["greet.c"].replace("godwit", "limosa")
    (directory / "greet.c").write_text(greeting)
    rebuilt = run([make, "CC=gcc"], cwd=directory)
    assert "greet.c" in rebuilt
    assert "count.c" not in rebuilt
    assert run([directory / "program"], cwd=directory) == "limosa 6\n"
    run([make, "clean"], cwd=directory)
    assert sorted(path.name for path in directory.iterdir()) == sorted(SOURCES)


def make_wheel(folder: Path) -> Path:
    """A wheel with a module and a console script, made by hand: nothing is fetched from anywhere."""
    path = folder / "migrant-1.0-py3-none-any.whl"
    files = {
        "migrant/__init__.py": "def main():\n    print('arrived')\n",
        **{f"migrant/leg_{n}.py": f"NUMBER = {n}\n" for n in range(150)},
        "migrant-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: migrant\nVersion: 1.0\n",
        "migrant-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "migrant-1.0.dist-info/entry_points.txt": "[console_scripts]\nmigrant = migrant:main\n",
    }
    files["migrant-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in [*files, "migrant-1.0.dist-info/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


def test_pip_installs_into_a_virtual_environment(directory: Path, tmp_path: Path) -> None:
    run([sys.executable, "-m", "venv", "--without-pip", directory / "venv"], cwd=directory)
    python = directory / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1", "TMPDIR": str(directory)}
    run([*pip, "install", make_wheel(tmp_path)], cwd=directory, env=offline)
    assert run([directory / "venv" / "bin" / "migrant"], cwd=directory) == "arrived\n"
    assert run([python, "-c", "import migrant.leg_29 as leg; print(leg.NUMBER)"], cwd=directory) == "29\n"
    run([*pip, "check"], cwd=directory, env=offline)
    run([*pip, "uninstall", "-y", "migrant"], cwd=directory, env=offline)
    assert not list((directory / "venv").rglob("migrant*"))
