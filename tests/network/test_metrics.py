"""What real processes tell a scraper, while they work and while something is wrong."""

import json
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.trust.identity import Role
from lab.lab import Lab
from tests.support.conditions import godwit, wait_for_copies, wait_until

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "metrics.md").read_text()
DASHBOARD = json.loads((DOCS / "metrics/dashboard.json").read_text())
IDLE = {"Tasks", "Oldest task", "Faults"}  # panels that may be empty while all is well
SECTIONS = {
    "manager": ("Every process", "Every manager"),
    "agent": ("Every process", "Agent and mount", "The agent"),
    "mount": ("Every process", "Agent and mount", "The mount"),
}
IN_OFFICE = "The manager, while it is in office"
SIZE = 10_000


class Told(dict[str, float]):
    """The samples of one process, by name and labels: `name{label="value",…}`, labels in the order of their names."""

    def of(self, name: str, *parts: str) -> float:
        """The sum over all samples of a name of which the labels have these *parts*."""
        return sum(
            number
            for key, number in self.items()
            if key.partition("{")[0] == name and all(part in key.partition("{")[2] for part in parts)
        )


def scrape(lab: Lab, server: str, part: str) -> Told:
    address = lab.config(server).metrics.address(Role(part)).replace("0.0.0.0", lab.address(server))
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    told = Told()
    for sample in samples:
        labels = ",".join(f'{label}="{value}"' for label, value in sorted(sample.labels.items()))
        told[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    assert len(told) == len(samples)  # Prometheus refuses an answer that says one thing twice
    return told


def manager(lab: Lab) -> Told:
    """What that in office tells."""
    (told,) = (told for server in lab.servers if (told := scrape(lab, server, "manager")).of("godwit_in_office"))
    return told


def documented(sections: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Type and labels by name, as the page has them."""
    texts = {text.partition("\n")[0]: text for text in PAGE.split("\n### ")}
    rows = [row for section in sections for row in re.findall(r"(?m)^\| `(\w+)` \| (\w+) \| (.*?) ?\| ", texts[section])]
    return {name: (kind, labels.strip()) for name, kind, labels in rows}


def test_every_process_tells_what_the_page_says(network: Lab) -> None:
    chief = godwit(network, "status")["manager"]
    for server in network.servers:
        for part, sections in SECTIONS.items():
            told = scrape(network, server, part)
            in_office = part == "manager" and server == chief
            rows = documented((*sections, IN_OFFICE) if in_office else sections)
            names = {re.sub(r"_(bucket|count|sum)$", "", name.partition("{")[0]) for name in told}
            ours = {name for name in names if name.startswith("godwit_")}
            assert ours <= rows.keys(), (server, part)
            # What has labels may have nothing to tell yet.
            assert {name for name, (_, labels) in rows.items() if not labels} <= ours, (server, part)
            (build,) = (name for name in told if name.startswith("godwit_build_info"))
            assert f'part="{part}"' in build
            assert f'server="{server}"' in build
            assert abs(told["godwit_time_seconds"] - time.time()) < 5
            assert told["godwit_certificate_end_timestamp_seconds"] > time.time() + 86400
            assert told["process_cpu_seconds_total"] > 0
            assert 3 < told["process_open_fds"] < told["process_max_fds"]
            assert told["process_start_time_seconds"] <= time.time()
            if part == "manager":
                assert told.of("godwit_in_office") == in_office
            else:
                assert told["godwit_manager_connected"] == 1


def test_what_is_done_is_counted_and_measured(network: Lab) -> None:
    wait_for_copies(network)
    before, at_mount = manager(network), scrape(network, "s1", "mount")
    copied = sum(scrape(network, server, "agent")["godwit_copied_bytes_total"] for server in network.servers)
    folder = network.mount("s1") / "measured"
    folder.mkdir()
    for number in range(20):
        (folder / str(number)).write_bytes(b"m" * SIZE)
    wait_for_copies(network)
    assert [(network.mount("s2") / "measured" / str(number)).stat().st_size for number in range(20)] == [SIZE] * 20

    mount = wait_until(lambda: settled(scrape(network, "s1", "mount")), "as many requests measured as counted")
    requests = "godwit_kernel_request_seconds_count"
    assert mount.of(requests, 'operation="create"') - at_mount.of(requests, 'operation="create"') == 20
    assert mount.of(requests, 'operation="mkdir"') - at_mount.of(requests, 'operation="mkdir"') == 1
    assert 0 < mount.of("godwit_kernel_request_seconds_sum", 'operation="create"') < 60
    assert mount.of("godwit_kernel_request_seconds_bucket", 'le="+Inf"') == mount.of(requests)

    after = manager(network)
    for name in ("godwit_transaction_seconds_count", "godwit_catalog_read_seconds_count", "godwit_transaction_writes_total"):
        assert after[name] > before[name], name
    assert after["godwit_transaction_writes_total"] >= after["godwit_transaction_seconds_count"]
    assert after.of("godwit_manager_request_seconds_count", 'request="ClaimTasks"') > 0
    # One copy beside the home of each.
    assert after["godwit_copy_lag_seconds_count"] - before["godwit_copy_lag_seconds_count"] >= 20
    assert after["godwit_inodes"] == godwit(network, "status")["inodes"]
    assert after.of("godwit_tasks") == after.of("godwit_oldest_task_seconds") == 0
    assert after["godwit_files_below_policy"] == before["godwit_files_below_policy"]
    assert after.of("godwit_server_state", 'state="up"') == after["godwit_mounts"] == 3
    assert after.of("godwit_volume_condition", 'condition="good"') == 3
    assert 0 < after.of("godwit_volume_free_bytes") < after.of("godwit_volume_size_bytes")
    # s2 has looked at what s1 held.
    assert after["godwit_recall_wait_seconds_count"] + after["godwit_leases_recalled_total"] > 0
    agents = [scrape(network, server, "agent") for server in network.servers]
    assert sum(told["godwit_copied_bytes_total"] for told in agents) - copied >= 20 * SIZE
    assert sum(told.of("godwit_task_seconds_count", 'operation="copy"', 'outcome="done"') for told in agents) >= 20


def settled(told: Told) -> Told | None:
    """What a mount tells, if no request is under way."""
    return told if told.of("godwit_kernel_request_seconds_count") == told["godwit_kernel_requests_total"] else None


def test_what_waits_is_seen(network: Lab) -> None:
    wait_for_copies(network)
    short = manager(network)["godwit_files_below_policy"]
    away = [server for server in network.servers if server != "s1"]
    for server in away:
        network.kill(server, "agent", signal.SIGTERM)  # in order: what it had claimed waits for nobody
    try:
        (network.mount("s1") / "waiting").write_bytes(b"w" * SIZE)
        told = wait_until(lambda: growing_old(manager(network)), "a task growing old")
        assert told["godwit_files_below_policy"] == short + 1
        assert told.of("godwit_tasks", 'state="waiting"') + told.of("godwit_tasks", 'state="claimed"') == 1
        wait_until(lambda: manager(network).of("godwit_server_state", 'state="suspect"') == 2, "two servers that are not heard")
    finally:
        for server in away:
            network.start(server, "agent")
    wait_for_copies(network)
    wait_until(lambda: manager(network).of("godwit_server_state", 'state="up"') == 3, "all servers heard again")
    assert manager(network)["godwit_files_below_policy"] == short
    assert scrape(network, "s1", "mount")["godwit_manager_connected"] == 1


def growing_old(told: Told) -> Told | None:
    """What the manager tells, once a task has waited for more than a second."""
    return told if told.of("godwit_oldest_task_seconds") > 1 else None


# ---------------------------------------------------------------------------------------------------- Prometheus itself


Api = Callable[..., Any]


@contextmanager
def prometheus(configuration: str, folder: Path) -> Iterator[Api]:
    """Runs it, and gives what asks its interface."""
    (folder / "prometheus.yml").write_text(configuration)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)

    def is_ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            urllib.request.urlopen(f"http://{address}/-/ready", timeout=10).close()
        except urllib.error.URLError:
            return False
        return True

    def ask(what: str, **question: str) -> Any:
        url = f"http://{address}/api/v1/{what}?{urllib.parse.urlencode(question)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{question}: {error.read()!r}") from error

    try:
        wait_until(is_ready, "Prometheus, ready")
        yield ask
    finally:
        process.terminate()
        process.wait(20)


def configuration(lab: Lab) -> str:
    """The page's own, with this network's addresses, and faster."""
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    text = re.sub(r"10\.0\.0\.(\d)", lambda found: lab.address(f"s{found[1]}"), text)
    text = text.replace("/etc/prometheus/godwit/alerts.yml", str(DOCS / "metrics/alerts.yml"))
    return "global: {scrape_interval: 1s, evaluation_interval: 1s}\n" + text


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus: it is of Debian's package prometheus")
def test_prometheus_itself_understands_all_of_it(network: Lab, tmp_path: Path) -> None:
    folder = network.mount("s1") / "scraped"
    folder.mkdir()
    with prometheus(configuration(network), tmp_path) as ask:
        wait_until(lambda: scraped(ask), "all targets scraped twice")
        for number in range(20):
            (folder / str(number)).write_bytes(b"s" * SIZE)
        wait_for_copies(network)
        expressions = {
            (panel["title"], target["expr"].replace("$__rate_interval", "1m").replace("$job", "godwit"))
            for panel in DASHBOARD["panels"]
            for target in panel.get("targets", [])
            if panel["title"] not in IDLE
        }
        for title, expression in sorted(expressions):
            wait_until(partial(found, ask, expression), f"anything in the panel {title}", 20)
        rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
        assert len(rules) == (DOCS / "metrics/alerts.yml").read_text().count("- alert: ")
        assert [rule["name"] for rule in rules if rule["health"] == "err"] == []
        assert [alert for alert in ask("alerts")["alerts"] if alert["state"] == "firing"] == []


def found(ask: Api, expression: str) -> bool:
    return bool(ask("query", query=expression)["result"])


def scraped(ask: Api) -> bool:
    """Whether each target that the page names was scraped, and twice: rates need two."""
    return len(ask("query", query="sum_over_time(up[1m]) >= 2")["result"]) == PAGE.count("10.0.0.")
