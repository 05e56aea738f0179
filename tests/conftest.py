"""What all tests share: storage networks of three servers for the whole session, and fresh directories on their mounts."""

import inspect
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.workermanage import NodeManager

from cluster.faults import faults
from cluster.messages import NamesPolicy
from cluster.volume.fence import lift_below
from lab.lab import Lab
from lab.state import PARTS, SUPERVISOR_LOG
from tests.scheduling import UnitsLast, needs_more, turn_of
from tests.support.machines import Provisioned, need_machines, provisioned_machines
from tests.support.modes import FALLBACK, OF_FALLBACK, PASSTHROUGH, assert_mode, need_passthrough

settings.register_profile("godwit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("godwit")  # how long an example takes says how busy the machine is

numbers = itertools.count(1)

TOLD = "told"
TEARDOWN_S = 20  # that an interrupted worker has to take its networks down; it ends by itself after fifteen

UNEXPECTED = (b"Traceback (most recent call last)", b"unexpected error in")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only what computes: no labs, mounts, PostgreSQL and long searches")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers, and lets `kill` end a run as Ctrl-C does: with the network taken down, also that of a worker."""
    config.addinivalue_line("markers", "programs: real programs with their files on a mount")
    config.addinivalue_line("markers", "search: many inputs at random, or many kills: a long search, left out by --fast")
    config.addinivalue_line("markers", "deadline(seconds): an async test fails if it takes longer by its clock")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    NodeManager.EXIT_TIMEOUT = TEARDOWN_S


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what `--fast` leaves out. On a worker, the long units are last: work is begun in the order of the tests."""
    if config.getoption("fast"):
        left_out = [item for item in items if needs_more(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not needs_more(item)]
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: turn_of(item.nodeid))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs an `async def` test by trio, on the clock that a fixture gives; enters fixtures that are async context managers."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    marker = pyfuncitem.get_closest_marker("deadline")
    fixtures = pyfuncitem.funcargs
    names = inspect.signature(test).parameters

    async def main() -> None:
        with trio.fail_after(marker.args[0]) if marker else trio.CancelScope():
            async with AsyncExitStack() as stack:
                arguments = {}
                for name in names:
                    value: Any = fixtures[name]
                    if isinstance(value, AbstractAsyncContextManager):
                        value = await stack.enter_async_context(value)
                    arguments[name] = value
                await test(**arguments)

    trio.run(main, clock=next((value for value in fixtures.values() if isinstance(value, trio.abc.Clock)), None))
    return True


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """Has an async test run in a time that passes while everybody waits. (It passes early where one waits for a thread.)"""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> UnitsLast:
    return UnitsLast(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have told of themselves, wherever they ran."""
    reports = [
        report for reports in terminalreporter.stats.values() for report in reports if isinstance(report, pytest.TestReport)
    ]
    told = [
        (report.nodeid, text)
        for report in reports
        if report.when == "call"
        for key, text in report.user_properties
        if key == TOLD
    ]
    if told:
        terminalreporter.section("what tests tell")
    for nodeid, text in told:
        terminalreporter.line(f"{nodeid}: {text}")


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says something that the end of the run shows, beside the test's name."""
    return lambda text: record_property(TOLD, text)


@pytest.fixture(autouse=True)
def first_faults() -> None:
    """What goes wrong in a test is logged whatever has gone wrong before, and not told of the processes of the next."""
    faults.begin_anew()


@pytest.fixture(autouse=True)
def deletable(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lifts the fences in a test's directory, so that pytest can delete it."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if folder is not None:
        lift_below(str(folder))


@contextmanager
def temporary_lab(overrides: Mapping[str, Mapping[str, Any]], names: NamesPolicy | None = None) -> Iterator[Lab]:
    """A storage network of three servers with one volume each; taken down and deleted at the end, whatever happened."""
    if os.geteuid() != 0:
        pytest.skip("mounts and network namespaces need root: run the tests with sudo")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("this machine has no /dev/fuse: load the kernel module with modprobe fuse")
    root = tempfile.mkdtemp(prefix="godwit-tests-")
    os.chmod(root, 0o755)
    lab = Lab.create(root, servers=3, volumes=1, overrides=overrides)
    try:
        lab.up(names=names)
        yield lab
    finally:
        lab.down(purge=True)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def by_default() -> Iterator[Lab]:
    """The storage network of most tests, with the configuration as it is by default, but that it can be scraped."""
    with temporary_lab({"metrics": {"listen": "0.0.0.0:7410"}}) as lab:
        yield lab


@pytest.fixture(scope="session")
def passthrough(by_default: Lab) -> Iterator[Lab]:
    """The same, whose mounts pass files through: before the tests, and still after them."""
    need_passthrough()
    assert_mode(by_default, PASSTHROUGH)
    yield by_default
    assert_mode(by_default, PASSTHROUGH)


@pytest.fixture(scope="session")
def fallback() -> Iterator[Lab]:
    """One whose mounts read and write all files themselves, and change no name before the manager has; they give rights."""
    with temporary_lab(OF_FALLBACK, NamesPolicy.THROUGH) as lab:
        assert_mode(lab, FALLBACK)
        yield lab


@pytest.fixture(scope="session")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provisioned]:
    """A network of three machines and a database, set up by the scripts that type what the operators' guide says."""
    need_machines()
    with provisioned_machines(tmp_path_factory.mktemp("machines")) as made:
        yield made


@pytest.fixture
def way_of_files() -> str:
    """The name of the fixture that has the network; `both_modes` takes its place."""
    return "by_default"


@pytest.fixture
def network(request: pytest.FixtureRequest, way_of_files: str) -> Lab:
    """The session's storage network."""
    lab: Lab = request.getfixturevalue(way_of_files)
    return lab


@pytest.fixture
def orderly_logs(network: Lab) -> Iterator[None]:
    """Fails a test during which a process of the network met an error that nobody had thought of."""
    with reading_logs(network):
        yield


@contextmanager
def reading_logs(network: Lab) -> Iterator[None]:
    """Fails if a process of the network ends by itself meanwhile, or meets an error that nobody had thought of."""
    supervisor = network.root / SUPERVISOR_LOG
    with watching([supervisor], (b"",)), watching([network.log(server, part) for server in network.servers for part in PARTS]):
        yield


@contextmanager
def watching(logs: Sequence[Path], marks: Sequence[bytes] = UNEXPECTED) -> Iterator[None]:
    """Fails if one of these words is added to one of the logs meanwhile; the empty word is in whatever is added."""
    before = {log: log.stat().st_size for log in logs if log.exists()}
    yield
    for log in logs:
        if not log.exists():
            continue
        with log.open("rb") as file:
            file.seek(before.get(log, 0))
            added = file.read()
        assert not (added and any(mark in added for mark in marks)), f"{log}:\n{added.decode(errors='replace')[-4000:]}"


@pytest.fixture
def directory(network: Lab, orderly_logs: None) -> Path:
    """A fresh directory on the mount of s1."""
    return fresh(network.mount("s1"))


def fresh(parent: Path) -> Path:
    """Makes a new directory in *parent*."""
    path = parent / f"test-{next(numbers)}"
    path.mkdir()
    return path
