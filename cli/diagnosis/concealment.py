"""Takes names of files, and whatever else is nobody's business, out of logs and outputs, so that they can be given to others.

Texts are not searched for what is a secret: nobody can list what names look like. It is the other way round. A word stays if
Godwit's own sentences have it, if it is a number, or if it is named (servers, hosts, the directories in the configuration);
everything else becomes `~` and a digest under a key that is drawn for each bundle and kept nowhere: so what is equal stays equal.
Whole paths and quoted names go word or no word. What stays of a name with blanks, outside of a path and of quotes, are words that
Godwit uses itself.
"""

import ast
import builtins
import errno
import hmac
import importlib.util
import os
import re
import signal
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGES = ("agent", "cli", "cluster", "fusefs", "lab", "manager")  # whose sentences are known
NAMES = frozenset({"name", "path", "paths", "conflicts", "conflict_paths"})
"""Fields of JSON whose texts are names, whatever they look like."""

DATABASES = """
Context impl Will assume transactional DDL; consuming input failed: could not receive data from server; could not send data;
connection to server at port failed: FATAL: password authentication failed for user; server closed the connection unexpectedly;
the database system is starting up; is shutting down; is in recovery mode; terminating connection due to administrator command;
remaining connection slots are reserved for roles with the attribute; no pg_hba.conf entry for host SSL off; timeout expired;
deadlock detected; could not serialize access due to concurrent update; canceling statement due to; cannot execute in a read-only
transaction; database disk image is malformed; unable to open database file; disk I/O error; attempt to write a readonly database
"""
"""What PostgreSQL, SQLite and Alembic say most."""

SYSTEM = ("/bin", "/dev", "/etc", "/lib", "/opt", "/proc", "/run", "/sbin", "/sys", "/usr", "/var")
REMOVED = "<removed>"
DIGEST_LETTERS = 10

_PLAIN = re.compile(
    r"""
      (?P<time>\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?)?)
    | (?P<quoted>(?<!\w)b?'(?:[^'\\]|\\.)*'(?!\w) | (?<!\w)"(?:[^"\\]|\\.)*"(?!\w))
    | (?P<path>(?<![\w/:.~-])/(?=[^\s/]))
    | (?P<amount>\d+(?:ms|s|min|h|d|B|KiB|MiB|GiB|TiB)\b)
    | (?P<word>\w+)
    """,
    re.VERBOSE,
)
_WORD = re.compile(r"\w+")
_URL_OWNER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/@\s]*@")
_TOKEN = re.compile(r"\bGW\d+\.\S+")


class Concealer:
    """Conceals texts, all of one bundle. *words*: in small letters. Paths are absolute."""

    def __init__(
        self,
        key: bytes,
        words: Iterable[str],
        *,
        kept: Collection[str] = (),
        places: Collection[str] = (),
        code: Iterable[str] = (),
        mounts: Iterable[str] = (),
        secrets: Iterable[str] = (),
    ) -> None:
        self._key = key
        self._words = frozenset(words)  # that stay
        self._kept = frozenset(word for text in kept for word in (text, *_WORD.findall(text)))  # that stay as they are
        self._code = _longest_first(code)  # directories of programs: all below stays
        self._mounts = _longest_first(mounts)  # all below are files of users
        self._places = _longest_first([*places, *SYSTEM])  # these stay; below, words as everywhere
        self._named = frozenset([*kept, *places, *self._mounts])  # may be told where names of files are
        self._secrets = _longest_first(secrets)  # removed wherever they are

    def name(self, name: str) -> str:
        """What stands for a name: the same for the same one."""
        digest = hmac.new(self._key, name.encode("utf-8", "surrogateescape"), "sha256")
        return f"~{digest.hexdigest()[:DIGEST_LETTERS]}"

    def path(self, path: str) -> str:
        """What stands for the path of a file: part by part, so that what is in one directory stays so."""
        return "/".join(self.name(part) if part not in ("", ".", "..") else part for part in path.split("/"))

    def text(self, text: str) -> str:
        """What may be told of a text of several lines."""
        for secret in self._secrets:
            text = text.replace(secret, REMOVED)
        text = _TOKEN.sub(REMOVED, _URL_OWNER.sub(rf"\1{REMOVED}@", text))
        return "\n".join(self._line(line) for line in text.split("\n"))

    def value(self, value: object, field: str = "") -> object:
        """The same of what JSON can have. *field*: whose value it is."""
        if isinstance(value, dict):
            return {self._field(key): self.value(inner, key) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.value(inner, field) for inner in value]
        if not isinstance(value, str):
            return value
        if field in NAMES:
            return value if value in self._named else self.path(value)
        return self.text(value)

    def _field(self, key: str) -> str:
        return key if re.fullmatch(r"\w+", key) and self._stays(key) else self.text(key)

    def _line(self, line: str) -> str:
        done, at = [], 0
        while found := _PLAIN.search(line, at):
            done.append(line[at : found.start()])
            end = found.end()
            if found.lastgroup == "quoted":
                done.append(self._quoted(found[0]))
            elif found.lastgroup == "path":
                end = self._end_of_path(line, found.start())
                done.append(self._path_in_text(line[found.start() : end]))
            elif found.lastgroup == "word":
                done.append(self._word(found[0]))
            else:
                done.append(found[0])
            at = end
        return "".join([*done, line[at:]])

    def _quoted(self, quoted: str) -> str:
        mark = quoted.index(quoted[-1]) + 1  # a `b` may be before it
        before, inner, after = quoted[:mark], quoted[mark:-1], quoted[-1]
        if inner.startswith("/"):
            return before + self._path_in_text(inner) + after
        # A name of one word that Godwit has, too, is a name all the same; but servers and numbers are told.
        return quoted if inner in self._kept or inner.isdigit() or not inner else before + self.name(inner) + after

    def _end_of_path(self, line: str, start: int) -> int:
        """Where it ends: names have blanks, so those of users go on to the end of the sentence's part."""
        rest = line[start:]
        blank = (
            re.search(r"\s|: |[,;)]", rest) if self._place_of(rest) in (*self._code, *self._places) else re.search(r": ", rest)
        )
        return start + (blank.start() if blank else len(rest))

    def _path_in_text(self, path: str) -> str:
        place = self._place_of(path)
        if place is None:
            return self.path(path)
        rest = path[len(place) :]
        if place in self._code:
            return path
        return place + (self.path(rest) if place in self._mounts else _WORD.sub(lambda found: self._word(found[0]), rest))

    def _place_of(self, path: str) -> str | None:
        """The known directory that the path begins with: the longest one."""
        lies = [
            place for place in (*self._code, *self._mounts, *self._places) if re.match(rf"{re.escape(place)}(?![\w.-])", path)
        ]
        return max(lies, key=len, default=None)

    def _word(self, word: str) -> str:
        return word if self._stays(word) else self.name(word)

    def _stays(self, word: str) -> bool:
        return (word.isascii() and word.isdigit()) or word in self._kept or word.lower() in self._words


def _longest_first(texts: Iterable[str]) -> list[str]:
    return sorted({text for text in texts if text and text != "/"}, key=len, reverse=True)


# --------------------------------------------------------------------------------------------------------- the words


@cache
def own_words() -> frozenset[str]:
    """The words of Godwit's sentences and the names in its code, of the system's errors and of Python's, in small letters.

    Blocks for a second.
    """
    found = {word.lower() for package in PACKAGES for path in _modules_of(package) for word in _words_in(path)}
    texts = [os.strerror(number) for number in errno.errorcode]
    texts += [DATABASES, *errno.errorcode.values(), *dir(builtins), *(each.name for each in signal.Signals)]
    return frozenset(found | {word.lower() for text in texts for word in _WORD.findall(text)})


def _modules_of(package: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        yield from Path(folder).rglob("*.py")


def _words_in(path: Path) -> Iterator[str]:
    yield from _WORD.findall(f"{path.parent.name} {path.stem}")
    tree = ast.parse(path.read_bytes())
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # comments, as far as a log goes
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield from _WORD.findall(node.value)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            # Other modules log, and errors have their classes' names.
            yield from _WORD.findall(" ".join([getattr(node, "module", None) or "", *(alias.name for alias in node.names)]))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id  # a field, as configurations and messages have them
