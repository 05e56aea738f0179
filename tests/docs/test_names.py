"""What a page of the documentation names in backticks is there: files, tests, commands and options, settings, identifiers."""

import re
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from cli.main import app
from cluster.config import ServerConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("cluster", "fusefs", "manager", "agent", "cli", "lab", "bench", "tests", "vagrant", "package", "docs")
FOREIGN = frozenset(
    {
        "CAP_LINUX_IMMUTABLE",
        "CONFIG_FUSE_PASSTHROUGH",
        "ENOTSUP",
        "FOPEN_CACHE_DIR",
        "FOPEN_DIRECT_IO",
        "FUSE_AUTO_INVAL_DATA",
        "FUSE_DIRECT_IO_ALLOW_MMAP",
        "FUSE_DONT_MASK",
        "FUSE_OPENDIR",
        "FUSE_PASSTHROUGH",
        "FUSE_TMPFILE",
        "F_OFD_SETLK",
        "F_SETLEASE",
        "NoneInfoExtractTests_Data",
        "RWF_SYNC",
        "attr_version",
        "findmnt",
        "fuse_file_fallocate",
        "libfuse3",
        "lsattr",
        "msync",
        "noatime",
        "setcap",
        "syncfs",
        "test_extractall_none_ownership",
        "timesyncd",
        "utimens",
        "vfs_rename",
        "_ns",
        "_s",
        "cProfile",
        "perf",
    }
)
"""Names of Linux, libfuse, other programs and of Python's own tests, and ends of names."""


def spans(page: Path) -> set[str]:
    """What stands between backticks, without blocks of code, and without the names that a comment of the page calls made up."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    made_up = set(re.findall(r"`([^`\n]+)`", " ".join(re.findall(r"<!-- made up: (.*?) -->", text))))
    return set(re.findall(r"`([^`\n]+)`", text)) - made_up


@cache
def words() -> frozenset[str]:
    """All words of the code, of its configuration, and the names of its files."""
    found = {path.name for path in ROOT.iterdir()}
    for folder in FOLDERS[:-1]:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path != Path(__file__):
                found |= set(re.findall(r"\w+", path.read_text(errors="replace"))) | {path.name, path.stem}
    return frozenset(found | {part for name in found for part in name.split(".")})


@cache
def names_of_files() -> frozenset[str]:
    listed = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts)
    return frozenset(path.name for path in [*listed, *ROOT.iterdir()])


@cache
def root_command() -> Any:
    return typer.main.get_command(app)


def missing_path(span: str) -> bool:
    """`folder/file`, `folder/file::test`, `folder/file: name`."""
    path, _, name = span.partition("::") if "::" in span else span.partition(": ")
    if not (ROOT / path).exists():
        return True
    is_there = re.search(rf"def {name}\(" if "::" in span else rf"\b{name}\b", (ROOT / path).read_text()) if name else True
    return not is_there


def missing_command(span: str) -> str:
    """What of `godwit noun verb ARGUMENT --option` does not exist; nothing if all does."""
    command = root_command()
    parts = span.split("; ")[0].split()[1:]
    for word in takewhile(lambda word: re.fullmatch(r"[a-z][a-z-]*", word), parts):
        subcommands = getattr(command, "commands", None)
        if subcommands is None:
            break
        if word not in subcommands:
            return word
        command = subcommands[word]
    own = takewhile(lambda word: word != "--", parts)
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known = options | {"--help", "--install-completion", "--show-completion"}
    return next((word for word in own if word.startswith("--") and word.partition("=")[0] not in known), "")


def missing_setting(span: str) -> bool:
    """`[section] key`, `[section] key = value`."""
    found = re.fullmatch(r"\[(\w+)\](?: (\w+)(?: = .*)?)?", span)
    if found is None:
        return False
    sections = {field.name: field.type for field in msgspec.structs.fields(ServerConfig)}
    if found[1] not in sections:
        return True
    return found[2] is not None and found[2] not in {field.name for field in msgspec.structs.fields(sections[found[1]])}


def is_missing(span: str) -> bool:
    if span.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
        return missing_path(span)
    if span.startswith("godwit "):
        return "|" not in span and bool(missing_command(span))
    if span.startswith("./dev "):
        return f"\n  {span.split()[1]} " not in (ROOT / "dev").read_text()
    if span.startswith("["):
        return missing_setting(span)
    if re.fullmatch(r"--[a-z-]+", span):
        return span.lstrip("-").replace("-", "_") not in words()
    if re.fullmatch(r"[\w-]+\.(py|md|c|h|sh)", span):
        return span not in names_of_files()
    if re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", span):
        return not all(word in words() | FOREIGN for word in span.removesuffix("()").split("."))
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    assert [span for span in sorted(spans(page)) if is_missing(span)] == []


def anchors(page: Path) -> set[str]:
    """The headings as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


NOWHERE = """
tests/docs/test_nothing.py
tests/docs/test_names.py::test_of_nothing
cluster/volume/content.py: no_such_name
godwit sing
godwit lab sing s1
godwit fsck --loudly
./dev sing
[agent] no_such_key
[nobody]
--no-such-option-anywhere
test_of_nothing.py
NoSuchIdentifier
no_such_function()
"""


@pytest.mark.parametrize("span", NOWHERE.strip().splitlines())
def test_what_does_not_exist_is_found(span: str) -> None:
    assert is_missing(span)
