"""`docs/metrics.md`, the alerts and the dashboard name what processes tell, and Prometheus takes them."""

import importlib
import json
import pkgutil
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client import ProcessCollector

import agent
import cluster
import fusefs
import manager
from cluster.counters import METRICS, Kind

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "metrics.md").read_text()
ALERTS = DOCS / "metrics/alerts.yml"
DASHBOARD = json.loads((DOCS / "metrics/dashboard.json").read_text())
FROM_PROMETHEUS = {"job", "instance", "le"}  # labels that it adds, and that of a histogram's bounds

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is of Debian's package prometheus")


@cache
def declared() -> dict[str, tuple[str, str, str]]:
    """What any process declares: type, labels and help by name."""
    for part in (agent, cluster, fusefs, manager):
        for module in pkgutil.walk_packages(part.__path__, f"{part.__name__}."):
            if "alembic" not in module.name:
                importlib.import_module(module.name)
    return {
        name: (metric.kind.value, ", ".join(f"`{label}`" for label in metric.labels), metric.help)
        for name, metric in METRICS.items()
    }


def test_the_page_has_them_all() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \| (.*) \|$", PAGE, flags=re.MULTILINE)
    assert len({name for name, *_ in rows}) == len(rows)
    assert {name: (kind, labels.strip(), help_) for name, kind, labels, help_ in rows} == declared()


def test_the_page_has_those_of_any_process() -> None:
    told = {sample.name for family in ProcessCollector(registry=None).collect() for sample in family.samples}
    assert set(re.findall(r"process_\w+", PAGE)) == told


# ------------------------------------------------------------------------------------------------ names in expressions


@cache
def series() -> dict[str, set[str]]:
    """What can be asked for, with its labels."""
    declared()
    found: dict[str, set[str]] = {"up": set()}
    for name, metric in METRICS.items():
        parts = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
        found |= {f"{name}{part}": set(metric.labels) for part in parts}
    for family in ProcessCollector(registry=None).collect():
        found |= {sample.name: set(sample.labels) for sample in family.samples}
    return found


def unknown(expression: str) -> list[str]:
    """Names of series, and of labels that they are chosen by, that nobody tells."""
    named = re.findall(r"\b((?:godwit_|process_)\w+|up)\b(?:\{([^}]*)\})?", expression)
    wrong = [name for name, _ in named if name not in series()]
    for name, matchers in named:
        labels = set(re.findall(r"(\w+)\s*(?:=|!)", re.sub(r'"[^"]*"', "", matchers)))
        wrong += [f"{name}: {label}" for label in labels - series().get(name, labels) - FROM_PROMETHEUS]
    for by in re.findall(r"\b(?:by|without) \(([^)]*)\)", expression):
        known = set().union(*(series().get(name, set()) for name, _ in named)) | FROM_PROMETHEUS
        wrong += [label for label in re.findall(r"\w+", by) if label not in known]
    return wrong


def expressions_of_alerts() -> list[str]:
    return re.findall(r"^ +expr: (.*)$", ALERTS.read_text(), flags=re.MULTILINE)


def expressions_of_dashboard() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


@pytest.mark.parametrize("expression", [*expressions_of_alerts(), *expressions_of_dashboard()])
def test_expressions_name_what_is_told(expression: str) -> None:
    assert unknown(expression) == []


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("godwit_tsks > 0", ["godwit_tsks"]),
        ("rate(godwit_copy_lag_seconds[5m])", ["godwit_copy_lag_seconds"]),
        ('godwit_tasks{sate="dead", job=~"godwit.*"}', ["godwit_tasks: sate"]),
        ("sum by (servr) (godwit_tasks)", ["servr"]),
    ],
)
def test_what_nobody_tells_is_found(expression: str, wrong: list[str]) -> None:
    assert unknown(expression) == wrong


def test_legends_name_labels() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            names = re.findall(r"godwit_\w+|process_\w+", target["expr"])
            known = set().union(*(series()[name] for name in names)) | FROM_PROMETHEUS
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known, panel["title"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


# ---------------------------------------------------------------------------------------------------- Prometheus itself


def promtool(*arguments: str) -> str:
    """What it says; fails if it does not like something."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_prometheus_takes_the_alerts() -> None:
    assert "rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", str(ALERTS))


@needs_promtool
def test_prometheus_takes_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    filled = [expression.replace("$__rate_interval", "5m").replace("$job", "godwit") for expression in expressions_of_dashboard()]
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(filled)]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "panels.yml"))
    assert not any("$" in expression for expression in filled)


class Case(NamedTuple):
    """An alert that must not fire at *quiet*, and must at *fires*; a value of a series a minute, from 0 on."""

    series: dict[str, str]
    quiet: str
    fires: str
    labels: dict[str, str]  # of the alert, but for its name, the job and its severity


M = 'job="godwit",instance="s1:7410"'  # a manager
A = 'job="godwit",instance="s1:7411"'  # an agent
AT_M, AT_A = {"instance": "s1:7410"}, {"instance": "s1:7411"}
AT_V = {"server": "s2", "volume": "/v"}
YEAR_S = 365 * 86400

CASES: dict[str, list[Case]] = {
    "GodwitNoManager": [
        Case(
            {f'godwit_in_office{{{M},server="s1"}}': "1x3 0x9", 'godwit_in_office{job="godwit",instance="b"}': "0x12"},
            "4m",
            "6m",
            {},
        ),
    ],
    "GodwitCatalogFault": [Case({f"godwit_catalog_fault{{{M}}}": "0x3 1x9"}, "4m", "6m", AT_M)],
    "GodwitCatalogNotBackedUp": [Case({f"godwit_backup_age_seconds{{{M}}}": "100x3 90000x20"}, "13m", "15m", {})],
    "GodwitServerDown": [
        Case({f'godwit_server_state{{{M},server="s2",state="down"}}': "0x3 1x9"}, "3m", "4m", {"server": "s2", "state": "down"})
    ],
    "GodwitServerSilent": [
        Case(
            {f'godwit_server_state{{{M},server="s2",state="suspect"}}': "0x3 1x9"},
            "5m",
            "7m",
            {"server": "s2", "state": "suspect"},
        )
    ],
    "GodwitProcessDown": [Case({f"up{{{A}}}": "1x3 0x9"}, "5m", "7m", AT_A)],
    "GodwitCutOff": [Case({f"godwit_manager_connected{{{A}}}": "1x3 0x9"}, "5m", "7m", AT_A)],
    # The manager changes meanwhile, which begins nothing anew.
    "GodwitFilesAtRisk": [
        Case(
            {
                f"godwit_files_below_policy{{{M}}}": "0x3 2x7 stale",
                'godwit_files_below_policy{job="godwit",instance="s2:7410"}': "_x10 2x20",
            },
            "18m",
            "20m",
            {},
        )
    ],
    "GodwitObjectsDamaged": [Case({f"godwit_objects_damaged{{{M}}}": "0x3 1x20"}, "8m", "10m", {})],
    "GodwitTasksGivenUp": [
        Case({f'godwit_tasks{{{M},server="s2",state="dead"}}': "0x3 1x20"}, "4m", "6m", {"server": "s2", "state": "dead"})
    ],
    "GodwitTasksOld": [
        Case(
            {f'godwit_oldest_task_seconds{{{M},server="s2",state="waiting"}}': "3540+60x20"},
            "6m",
            "8m",
            {"server": "s2", "state": "waiting"},
        )
    ],
    "GodwitVolumeNearlyFull": [
        Case(
            {
                f'godwit_volume_size_bytes{{{M},server="s2",volume="/v"}}': "100x20",
                f'godwit_volume_free_bytes{{{M},server="s2",volume="/v"}}': "11 9x20",
            },
            "10m",
            "12m",
            AT_V,
        )
    ],
    "GodwitVolumeFull": [
        Case(
            {
                f'godwit_volume_size_bytes{{{M},server="s2",volume="/v"}}': "100x20",
                f'godwit_volume_free_bytes{{{M},server="s2",volume="/v"}}': "3 1x20",
            },
            "1m",
            "3m",
            AT_V,
        )
    ],
    "GodwitVolumeBad": [
        Case(
            {
                f'godwit_volume_condition{{{M},server="s2",volume="/v",condition="good"}}': "1x3 0x9",
                f'godwit_volume_condition{{{M},server="s2",volume="/v",condition="read-only"}}': "0x3 1x9",
            },
            "4m",
            "6m",
            {**AT_V, "condition": "read-only"},
        )
    ],
    "GodwitDiskErrors": [Case({f'godwit_disk_errors_total{{{A},volume="/v"}}': "4x3 5x9"}, "3m", "5m", {**AT_A, "volume": "/v"})],
    "GodwitChangesLost": [
        Case({f"godwit_own_changes_lost_total{{{A}}}": "0x3 1x9"}, "3m", "5m", AT_A),
        Case({f"godwit_dead_journal_records_lost_total{{{A}}}": "0x3 1x9"}, "3m", "5m", AT_A),
    ],
    "GodwitMigrationFailed": [Case({f'godwit_migrations{{{M},state="failed"}}': "0x3 1x9"}, "4m", "6m", {"state": "failed"})],
    "GodwitManagersChange": [Case({f"godwit_term{{{M}}}": "7+1x20"}, "5m", "7m", {})],
    "GodwitCertificateEnds": [
        Case(
            {
                f"godwit_certificate_end_timestamp_seconds{{{A}}}": "9000x90",
                f"godwit_certificate_overdue_timestamp_seconds{{{A}}}": "3000x90",
            },
            "59m",
            "62m",
            AT_A,
        )
    ],
    "GodwitAuthorityEnds": [Case({f"godwit_authority_end_timestamp_seconds{{{M}}}": f"{YEAR_S + 60}x90"}, "60m", "65m", {})],
    "GodwitClockWrong": [Case({f"godwit_time_seconds{{{A}}}": "1+60x3 250+60x20"}, "8m", "10m", AT_A)],
    "GodwitUnexpectedErrors": [Case({f"godwit_unexpected_errors_total{{{A}}}": "0x3 1x9"}, "3m", "5m", AT_A)],
    "GodwitDescriptors": [
        Case({f"process_open_fds{{{A}}}": "50x3 95x20", f"process_max_fds{{{A}}}": "100x23"}, "8m", "10m", AT_A)
    ],
}


def test_each_alert_has_a_case() -> None:
    assert [*CASES] == re.findall(r"- alert: (\w+)", ALERTS.read_text())


def severities() -> dict[str, str]:
    return dict(re.findall(r"- alert: (\w+)\n(?:.*\n)*?        labels: \{severity: (\w+)\}", ALERTS.read_text()))


def written(name: str, case: Case) -> dict[str, Any]:
    """The case as promtool wants it."""
    firing = f'ALERTS{{alertname="{name}",alertstate="firing"}}'
    labels = {"alertname": name, "alertstate": "firing", "job": "godwit", "severity": severities()[name], **case.labels}
    told = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return {
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in case.series.items()],
        "promql_expr_test": [
            {"expr": firing, "eval_time": case.quiet, "exp_samples": []},
            {"expr": firing, "eval_time": case.fires, "exp_samples": [{"labels": f"ALERTS{{{told}}}", "value": 1}]},
        ],
    }


def cases() -> Iterator[dict[str, Any]]:
    for name, each in CASES.items():
        for case in each:
            yield written(name, case)
    nobody = 'ALERTS{alertname="GodwitNoManager",alertstate="firing",severity="critical"}'
    expected = [{"expr": nobody, "eval_time": "3m", "exp_samples": [{"labels": nobody, "value": 1}]}]
    yield {"interval": "1m", "input_series": [], "promql_expr_test": expected}


@needs_promtool
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    written_cases = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [*cases()]}
    (tmp_path / "cases.yml").write_text(json.dumps(written_cases))
    promtool("test", "rules", str(tmp_path / "cases.yml"))
