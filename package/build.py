"""Builds the packages of the release that it runs on: a .deb and an .rpm. `./dev package` calls it, here or in a fresh root.

The virtual environment in a package belongs to one minor version of Python and one of libfuse3: those of the release, so that
each release has packages of its own. It is run by the system's Python, and needs nothing beside the standard library.
"""

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import NamedTuple

PREFIX = Path("usr/lib/godwit")  # in the package's tree: the virtual environment
PROGRAMS = ("godwit", "mount.godwit")  # that are kept of it
SHELLS = {
    "bash": "usr/share/bash-completion/completions/godwit",
    "zsh": "usr/share/zsh/vendor-completions/_godwit",
    "fish": "usr/share/fish/vendor_completions.d/godwit.fish",
}
COMPILED = "pyfuse3"  # has no wheel for all, since libfuse3 differs; all others are as their makers built them
BUILT_HERE = ("fusefs", COMPILED)
# Of the packages' versions: of Debian's releases an rpm has nothing but the Python.
SUFFIXES = {"deb": "{0.suffix}", "rpm": ".{0.python}"}
HERE = Path(__file__).resolve().parent


class Release(NamedTuple):
    """What the packages are for."""

    suffix: str  # of the version: later releases sort later
    python: str  # as `python3.11`: the package, and its program in /usr/bin

    @property
    def interpreter(self) -> str:
        return f"/usr/bin/{self.python}"


def main() -> None:
    """Builds both packages, and prints their paths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="a copy of the sources, which may be changed")
    parser.add_argument("--work", type=Path, required=True, help="an empty directory, whose path is nobody's afterwards")
    parser.add_argument("--output", type=Path, required=True, help="where the packages go")
    parser.add_argument("--nfpm", required=True, help="the program nfpm")
    parser.add_argument("--revision", type=int, default=1, help="of the packages of one version of Godwit")
    parser.add_argument("--only", choices=SUFFIXES, help="one kind of package")
    given = parser.parse_args()
    os.umask(0o022)
    release = this_release()
    version = tomllib.loads((given.source / "pyproject.toml").read_text())["project"]["version"]
    root = given.work / "root"
    make_environment(root, given.source, given.work, release)
    make_texts(root, given.source, f"{version}-{given.revision}{release.suffix}")
    values = {
        "architecture": output(["dpkg", "--print-architecture"]),
        "version": version,
        "python": release.python,
        "libraries": ", ".join(map(json.dumps, libraries(root, given.work))),
        "root": str(root),
        "here": str(HERE),
    }
    make_links_relative(root / PREFIX / "bin")
    description = given.work / "nfpm.yaml"
    given.output.mkdir(exist_ok=True)
    for kind in (given.only,) if given.only else SUFFIXES:
        suffix = SUFFIXES[kind].format(release)
        text = Template((HERE / "nfpm.yaml").read_text()).substitute(values, release=f"{given.revision}{suffix}")
        description.write_text(text)
        command = [given.nfpm, "package", "--config", str(description), "--packager", kind, "--target", str(given.output)]
        print(output(command).splitlines()[-1].removeprefix("created package: "))


def this_release() -> Release:
    """The release of this machine; ends the program if no packages can be built on it."""
    about = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    system, number = about.get("ID", "").strip('"'), about.get("VERSION_ID", "").strip('"')
    if system not in ("debian", "ubuntu") or not number:
        sys.exit("packages are built on a release of Debian or Ubuntu")
    name = "deb" if system == "debian" else system
    return Release(f"+{name}{number}", os.path.basename(os.path.realpath("/usr/bin/python3")))


def make_environment(root: Path, source: Path, work: Path, release: Release) -> None:
    """The virtual environment in *root*, complete, compiled, and without a trace of where it was made."""
    place = root / PREFIX
    run([release.interpreter, "-m", "venv", str(work / "tools")])
    run([release.interpreter, "-m", "venv", "--without-pip", str(place)])
    pip = [str(work / "tools/bin/python"), "-m", "pip", "--python", str(place / "bin/python3"), "--disable-pip-version-check"]
    # What is compiled is compiled here: pip may keep a wheel that another Python of the same version made for itself.
    run([*pip, "wheel", "--quiet", "--no-cache-dir", "--no-deps", "--wheel-dir", str(work / "wheels"), COMPILED])
    found = ["--no-warn-script-location", "--find-links", str(work / "wheels")]
    run([*pip, "install", "--quiet", "--no-compile", *found, f"{source}[postgres]"])
    modules = next(place.glob("lib/python3*/site-packages"))
    if not list(modules.glob("fusefs/kernel/_channel*.so")):
        sys.exit("the C extension could not be compiled")
    write_programs(place, release)
    for path in modules.glob("*/direct_url.json"):  # has the path of the sources here
        path.unlink()
    for path in elf_files(modules, BUILT_HERE):
        run(["strip", "--strip-unneeded", "--remove-section=.comment", "--remove-section=.note", str(path)])
    for path in modules.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    # Compiled once and for all: a program that is run by root would leave its own beside the modules, which nobody removes.
    compiled = ["-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    run([str(place / "bin/python3"), *compiled, str(place / "lib")])


def write_programs(place: Path, release: Release) -> None:
    """Makes the environment one that lies in its place in the installed system."""
    prefix = f"/{PREFIX}"
    for path in (place / "bin").iterdir():
        if not path.name.startswith("python"):
            path.unlink()
    for name in ("include", "share"):
        shutil.rmtree(place / name, ignore_errors=True)
    for name in ("python", "python3", release.python):
        (place / "bin" / name).unlink(missing_ok=True)
        (place / "bin" / name).symlink_to(release.interpreter)
    scripts = {name: value for name, value in entry_points(place).items() if name in PROGRAMS}
    for name, value in scripts.items():
        module, function = value.split(":")
        # -I: nothing of the user's environment or working directory becomes code of a program of root's.
        text = f"#!{prefix}/bin/python3 -I\nimport sys\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(0o755)
    version = output([release.interpreter, "-c", "import platform; print(platform.python_version())"])
    config = {"home": "/usr/bin", "include-system-site-packages": "false", "version": version, "executable": release.interpreter}
    (place / "pyvenv.cfg").write_text("".join(f"{key} = {value}\n" for key, value in config.items()))


def make_links_relative(folder: Path) -> None:
    """As links within /usr are; before, the environment would not work where it was made."""
    for path in folder.iterdir():
        if path.is_symlink() and os.path.isabs(path.readlink()):
            target = os.path.relpath(path.readlink(), f"/{PREFIX}/bin")
            path.unlink()
            path.symlink_to(target)


def entry_points(place: Path) -> dict[str, str]:
    """The programs that Godwit's wheel says to have: module and function of each."""
    text = next(place.glob("lib/python3*/site-packages/godwit-*.dist-info/entry_points.txt")).read_text()
    return dict(re.findall(r"^([\w.]+) = ([\w.:]+)$", text, re.MULTILINE))


def make_texts(root: Path, source: Path, version: str) -> None:
    """What the program says about itself: manual pages, completions, units; and what a package has to say."""
    python = str(root / PREFIX / "bin/python3")
    made = root / "usr/share/man"
    run([python, "-I", str(HERE / "manuals.py"), str(made)])
    units = root / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    run([python, "-I", str(HERE / "units.py"), str(units)])
    for shell, path in SHELLS.items():
        completion = root / path
        completion.parent.mkdir(parents=True)
        # Typer's own, asked for by the environment. The variable's name is that of the program in capitals.
        about = {**os.environ, "_GODWIT_COMPLETE": f"source_{shell}"}
        completion.write_text(output([python, str(root / PREFIX / "bin/godwit")], about) + "\n")
    documents = root / "usr/share/doc/godwit"
    documents.mkdir(parents=True)
    for name in ("README.md", "docs/operations.md", "docs/security.md", "docs/cli.md"):
        shutil.copy(source / name, documents)
    (documents / "copyright").write_text(copyright_of(root))
    write_compressed(documents / "changelog.gz", (source / "CHANGELOG.md").read_text())
    date = output(["date", "--utc", "--rfc-email", f"--date=@{os.environ['SOURCE_DATE_EPOCH']}"])
    entry = f"godwit ({version}) unstable; urgency=medium\n\n  * Built from the sources of Godwit; see changelog.gz.\n\n"
    write_compressed(documents / "changelog.Debian.gz", f"{entry} -- {maintainer()}  {date}\n")


def maintainer() -> str:
    """Who answers for the package: what its description says."""
    found = re.search(r"^maintainer: (.*)$", (HERE / "nfpm.yaml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def copyright_of(root: Path) -> str:
    """Godwit's licence, and whose else's work lies in the environment, under which licence."""
    listed = (
        "import json, importlib.metadata as m\n"
        "print(json.dumps([[d.name, d.version, d.metadata.get('License-Expression') or d.metadata.get('License') or '',\n"
        "[c for c in d.metadata.get_all('Classifier', []) if c.startswith('License')]] for d in m.distributions()]))"
    )
    found = json.loads(output([str(root / PREFIX / "bin/python3"), "-I", "-c", listed]))
    lines = []
    for name, number, licence, classifiers in sorted(found):
        # Some have the whole text in that field.
        short = licence if licence and "\n" not in licence else ", ".join(c.rpartition("::")[2].strip() for c in classifiers)
        lines.append(f"  {name} {number}: {short or 'see its licence file'}")
    parts = "\n".join(lines)
    year = output(["date", "--utc", f"--date=@{os.environ['SOURCE_DATE_EPOCH']}", "+%Y"])
    return (
        "Godwit: one storage network out of several Linux servers.\n\n"
        f"Copyright {year} the authors of Godwit\n\n"
        "Licensed under the Apache License, Version 2.0. You may not use it except in compliance with the License, whose\n"
        "text is in /usr/share/common-licenses/Apache-2.0 on Debian, and in the directory godwit-*.dist-info of the\n"
        'environment. Unless required by applicable law or agreed to in writing, it is distributed on an "AS IS" BASIS,\n'
        "WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.\n\n"
        "The environment, /usr/lib/godwit, has these libraries as their makers published them on PyPI; their licences'\n"
        "texts and copyright notices are in the directories *.dist-info there:\n\n"
        f"{parts}\n"
    )


def libraries(root: Path, work: Path) -> list[str]:
    """The packages whose shared libraries the environment needs, with versions; those that wheels bring along left out."""
    place = work / "shlibs"
    (place / "debian").mkdir(parents=True)
    (root / "DEBIAN").mkdir()  # by which it knows the root of the tree
    (place / "debian/control").write_text("Source: godwit\n\nPackage: godwit\nArchitecture: any\n")
    modules = root / PREFIX / "lib"
    brought = sorted({str(path.parent) for path in modules.rglob("*.so*") if path.parent.name.endswith(".libs")})
    command = ["dpkg-shlibdeps", "-O", "--ignore-missing-info", "--warnings=0", *(f"-l{path}" for path in brought)]
    found = output([*command, *(f"-e{path}" for path in elf_files(modules))], directory=place)
    return [name.strip() for name in found.removeprefix("shlibs:Depends=").split(",")]


def elf_files(folder: Path, of: Iterable[str] = ("",)) -> list[Path]:
    """The shared objects in *folder*, below or beside what begins with one of the names *of*; not those brought by wheels."""
    found = sorted(path for path in folder.rglob("*.so") if not path.parent.name.endswith(".libs"))
    return [path for path in found if str(path.relative_to(folder)).startswith(tuple(of))]


def write_compressed(path: Path, text: str) -> None:
    """Compresses as Debian wants it: best, and without a time."""
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def run(command: list[str]) -> None:
    """Runs a command; what it says goes to stderr, and its failure ends the program."""
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        sys.exit(f"failed: {' '.join(command)}")


def output(command: list[str], environment: dict[str, str] | None = None, directory: Path | None = None) -> str:
    """What a command prints; its failure ends the program."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment, cwd=directory)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
