"""`godwit doctor --bundle`: the findings, the state of the network and the logs in one file, to be given to who can help.

Without secrets and names of files: see `cli.diagnosis.concealment`.
"""

import gzip
import io
import json
import os
import platform
import secrets
import site
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import msgspec

from cli.commands.events import SHOWN_MAX, event_object
from cli.commands.migrations import migration_object
from cli.commands.queue import task_object
from cli.commands.servers.servers import server_object
from cli.commands.status import status_object
from cli.diagnosis.concealment import PACKAGES, Concealer, own_words
from cli.diagnosis.logs import Log
from cli.network.ask import ask
from cli.network.target import Target
from cluster.config import ServerConfig, dump_config
from cluster.durable import replace_file
from cluster.errors import GodwitError, Refused
from cluster.messages import GetStatus, ListEvents, ListMigrations, ListTasks
from cluster.release import RELEASE
from cluster.rpc.wire import parse_address

MEBIBYTE = 1 << 20
TASKS_MAX = 1000
FOLDER = "godwit-doctor"
ABOUT = """What `godwit doctor --bundle` has put together, for somebody who is to help.

findings.json   what godwit doctor has found
versions.json   of Godwit, Python, the kernel and Python packages
config/         the configuration of each server that was looked at, without the database's password
state/          what godwit status, servers ls, queue ls, migrations ls and events say with --json
logs/           the end of the logs

Names of files, and every word that is not Godwit's own, a number, or the name of a server or of a directory in the
configuration, are digests (~0123456789): equal ones stand for equal words. The key under which they were made is kept nowhere.
Have a look at it all the same before you give it away.
"""


def require_place(file: Path, *, force: bool) -> None:
    """Raises `Refused` if the bundle cannot go there, before anything is looked at."""
    if os.path.lexists(file) and not force:
        raise Refused(f"{file} is there already: take another name, or --force")
    if not file.parent.is_dir():
        raise Refused(f"there is no directory {file.parent}")


def write_bundle(
    file: Path,
    findings: dict[str, object],
    configs: Sequence[ServerConfig],
    target: Target | None,
    logs: Iterable[Log],
    timeout_s: float,
    *,
    kept: Iterable[str] = (),
) -> int:
    """Writes the whole file, which only its owner can read; returns its size. *kept*: further directories that may be named.

    Raises `OSError`.
    """
    states = state_of(target, timeout_s) if target is not None else {}
    servers, volumes = _named_in(states)
    concealer = concealer_for(configs, servers, [*volumes, *kept])
    parts: dict[str, bytes] = {"README.txt": ABOUT.encode()}
    parts["findings.json"] = _json(concealer.value(findings))
    parts["versions.json"] = _json(versions())
    parts |= {f"config/{config.server}.toml": dump_config(without_secrets(config)) for config in configs}
    parts |= {f"state/{name}.json": _json(concealer.value(state)) for name, state in states.items()}
    # Lone surrogates stand for bytes that are no text.
    parts |= {f"logs/{log.name}": concealer.text(log.text).encode("utf-8", "surrogateescape") for log in logs}
    replace_file(file, packed(parts))
    return file.stat().st_size


def packed(parts: Mapping[str, bytes]) -> bytes:
    """A compressed archive of these files."""
    archive = io.BytesIO()
    now_s = int(time.time())
    # Without the name that `tarfile` would write into the head.
    with gzip.GzipFile(filename="", fileobj=archive, mode="wb") as compressed, tarfile.open(fileobj=compressed, mode="w") as tar:
        for name, content in parts.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size, member.mode, member.mtime = len(content), 0o600, now_s
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def without_secrets(config: ServerConfig) -> ServerConfig:
    """The configuration as others may read it."""
    if not config.is_candidate:
        return config
    # Imported here: most commands need no SQLAlchemy.
    from manager.catalog.urls import parse_url, shown

    try:
        database = shown(parse_url(config.manager.database))
    except Refused:
        database = ""  # what is no URL may be a password
    return msgspec.structs.replace(config, manager=msgspec.structs.replace(config.manager, database=database))


def secrets_of(config: ServerConfig) -> Iterator[str]:
    """What must be nowhere in the bundle, as far as the configuration has it."""
    if not config.is_candidate:
        return
    from manager.catalog.urls import SECRET_OPTIONS, parse_url

    try:
        url = parse_url(config.manager.database)
    except Refused:
        yield config.manager.database
        return
    found = [str(url.password or "")]
    for name in SECRET_OPTIONS:
        value = url.query.get(name, ())
        found += [value] if isinstance(value, str) else value  # an option may be given several times
    # As it is, and as a URL has it.
    yield from (form for secret in found if secret for form in (secret, quote(secret, safe=""), quote_plus(secret)))


def versions() -> dict[str, object]:
    """What runs here."""
    return {
        "godwit": RELEASE,
        "python": platform.python_version(),
        "kernel": " ".join((platform.system(), platform.release(), platform.machine())),
        "packages": {found.name: found.version for found in sorted(distributions(), key=lambda found: str(found.name).lower())},
    }


def state_of(target: Target, timeout_s: float) -> dict[str, dict[str, object]]:
    """What the manager says, by command; an `error` in its place if it does not."""
    try:
        status = ask(target, timeout_s, GetStatus())
    except GodwitError as error:
        # Nobody answers: the others would wait as long, each.
        return {"status": {"error": str(error)}}
    found: dict[str, dict[str, object]] = {
        "status": status_object(status),
        "servers": {"servers": [server_object(info, status.manager) for info in status.servers]},
    }
    for name, command in (("queue", _queue), ("migrations", _migrations), ("events", _events)):
        try:
            found[name] = command(target, timeout_s)
        except GodwitError as error:
            found[name] = {"error": str(error)}
    return found


def _queue(target: Target, timeout_s: float) -> dict[str, object]:
    answer = ask(target, timeout_s, ListTasks("", "", TASKS_MAX))
    return {"tasks": [task_object(task) for task in answer.tasks], "total": answer.total}


def _migrations(target: Target, timeout_s: float) -> dict[str, object]:
    return {"migrations": [migration_object(row) for row in ask(target, timeout_s, ListMigrations(limit=100)).migrations]}


def _events(target: Target, timeout_s: float) -> dict[str, object]:
    return {"events": [event_object(row) for row in ask(target, timeout_s, ListEvents(limit=SHOWN_MAX)).events]}


def _named_in(states: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The names of servers, and the directories of volumes, that the manager tells."""
    servers = states.get("status", {}).get("servers", [])
    return [server["server"] for server in servers], [volume["path"] for server in servers for volume in server["volumes"]]


def concealer_for(configs: Sequence[ServerConfig], servers: Iterable[str], kept: Iterable[str] = ()) -> Concealer:
    """One for this bundle: servers, hosts and directories of the configurations may be named."""
    addresses = [address for config in configs for address in config.managers]
    volumes = [volume for config in configs for volume in config.agent.volumes]
    places = [place for config in configs for place in (config.state, config.trust)]
    return Concealer(
        secrets.token_bytes(32),
        own_words(),
        kept=[
            *servers,
            *(name for config in configs for name in (config.server, config.cluster, config.admin_group)),
            *(parse_address(address)[0] for address in addresses),
            platform.node(),
            platform.release(),
            RELEASE,
        ],
        places=[*places, *volumes, *kept],
        code=[sys.prefix, sys.base_prefix, *site.getsitepackages(), *_code()],
        mounts=[config.mount.mountpoint for config in configs],
        secrets=[secret for config in configs for secret in secrets_of(config)],
    )


def _code() -> Iterator[str]:
    """The directories of Godwit's own modules."""
    top = Path(__file__).resolve().parents[2]
    yield from (str(top / package) for package in PACKAGES)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
