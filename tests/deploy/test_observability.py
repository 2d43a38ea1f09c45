"""Alert rules, Prometheus' configuration and the dashboard: they parse, and name metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.observe.metrics import LIBRARY, METRICS, exported_names
from tests.deploy.manifests import services

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "observability"
GUIDE = (FOLDER / "README.md").read_text(encoding="utf-8")
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana" / "shoal.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
EXPORTED = frozenset(sample for name in METRICS for sample in exported_names(name))

FUNCTIONS = {"absent", "delta", "deriv", "histogram_quantile", "increase", "max", "min", "rate", "sum"}
OPERATORS = {"and", "or", "unless", "on", "by"}
"""What stands in our expressions besides metrics and labels."""


def named(expression: str) -> set[str]:
    """The metrics that an expression names."""
    bare = re.sub(r'"[^"]*"|\$\w+|\{[^}]*\}|\[[^\]]*\]', " ", expression)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", " ", bare)
    return set(re.findall(r"(?<![\w.])[a-zA-Z_]\w*", bare)) - FUNCTIONS - OPERATORS


def labels(expression: str) -> Iterator[tuple[str, str]]:
    """Each metric of an expression with each label that it is chosen by."""
    for metric, chosen in re.findall(r"(\w+)\{([^}]*)\}", expression):
        for label in re.findall(r"(\w+)\s*[=!]", chosen):
            yield metric, label


def promtool(*arguments: str, cwd: Path) -> None:
    found = shutil.which("promtool") or pytest.skip("no promtool here (Debian: apt install prometheus)")
    ran = subprocess.run([found, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_names_is_found_in_an_expression() -> None:
    found = named('sum by (a, b) (rate(shoal_x_total{c="up"}[5m])) / on (d) group_left up > 0.5 and shoal_y')
    assert found == {"shoal_x_total", "group_left", "up", "shoal_y"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alerts_name_metrics_that_are_exported(rule: dict[str, Any]) -> None:
    assert named(rule["expr"])
    assert named(rule["expr"]) <= EXPORTED | LIBRARY
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith(".")


@pytest.mark.parametrize(("title", "expression"), TARGETS)
def test_panels_name_metrics_that_are_exported(title: str, expression: str) -> None:
    assert named(expression), title
    assert named(expression) <= EXPORTED | LIBRARY


@pytest.mark.parametrize(
    "expression", [*(rule["expr"] for rule in RULES), *(expression for _, expression in TARGETS)]
)
def test_metrics_are_chosen_by_labels_that_they_have(expression: str) -> None:
    for sample, label in labels(expression):
        owner = next((name for name in METRICS if sample in exported_names(name)), None)
        known = {"job", "instance"} | set(METRICS[owner].labels if owner else ())
        assert label in known, f"{sample} has no label {label}"


def test_every_metric_is_watched_by_somebody() -> None:
    """A metric that no rule and no panel reads is one that nobody needs."""
    read: set[str] = set()
    for expression in [*(rule["expr"] for rule in RULES), *(expression for _, expression in TARGETS)]:
        read |= named(expression)
    quiet = {name for name in METRICS if not exported_names(name) & read}
    assert quiet == {
        "shoal_database_reading_age_seconds",
        "shoal_database_reading_statements",
        "shoal_experiment_info",  # the dashboard's list of experiments
        "shoal_experiment_stop_requested",
        "shoal_schedule_paused",
        "shoal_worker_info",
        "shoal_controller_run_seconds",
        "shoal_controller_trials_planned",
        "shoal_controller_trials_ended",
    }


def test_every_alert_is_in_the_guide_once() -> None:
    alerts = [rule["alert"] for rule in RULES]
    assert len(set(alerts)) == len(alerts)
    assert re.findall(r"^\| `(Shoal\w+)`", GUIDE, re.MULTILINE) == alerts


def test_texts_name_metrics_that_are_exported() -> None:
    for place in [ROOT / "README.md", ROOT / "deploy" / "README.md", FOLDER / "README.md"]:
        words = re.findall(r"\bshoal_[a-z]\w*", place.read_text(encoding="utf-8")) if place.exists() else []
        roles = {"shoal_owner", "shoal_worker", "shoal_reader"}
        assert set(words) - roles <= EXPORTED | METRICS.keys(), place


def test_the_guide_explains_every_metric() -> None:
    assert {name for name in METRICS if f"`{name}`" not in GUIDE} == set()


def test_the_dashboard_has_one_source_that_can_be_chosen() -> None:
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "experiment"}
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])


def test_panels_have_ids_titles_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel["title"] and panel["description"] for panel in PANELS)
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & covered, panel["title"]
        cells |= covered


def test_jobs_that_rules_name_are_scraped() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    asked = {job for rule in RULES for job in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert asked
    assert asked <= jobs
    assert config["rule_files"] == ["alerts.yml"]


def test_what_is_scraped_listens_at_that_port() -> None:
    """Each service of compose that Prometheus asks serves metrics there, to more than its own container."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    asked: list[tuple[str, int]] = []
    for job in config["scrape_configs"]:
        for group in job.get("static_configs", ()):
            asked += [(host, int(port)) for host, _, port in (one.partition(":") for one in group["targets"])]
        for group in job.get("dns_sd_configs", ()):
            asked += [(name, group["port"]) for name in group["names"]]
    assert {host for host, _ in asked} == {"metrics", "worker", "worker-gpu"}
    for host, port in asked:
        service = services()[host]
        told = dict(zip(service["command"], service["command"][1:], strict=False))
        listening = told.get("--metrics-port", told.get("--port"))
        assert listening == str(port), host
        assert (told.get("--host") or service["environment"]["SHOAL_METRICS_HOST"]) == "0.0.0.0", host


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml", cwd=FOLDER)


def test_promtool_parses_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{place}", "expr": expression.replace("$experiment", ".*")}
        for place, (_, expression) in enumerate(TARGETS)
    ]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", "panels.yml", cwd=tmp_path)


def test_alerts_fire_when_they_should_and_only_then() -> None:
    """Time series and the alerts that they raise: see the file."""
    promtool("test", "rules", "alerts_test.yml", cwd=Path(__file__).parent)
