"""Alerts and dashboard against what server and operator expose: every series, label and value they ask for is one of theirs.

Whether an expression is PromQL, and when an alert fires, is for the real Prometheus: e2e/test_prometheus.py.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from millrace_operator.autoscale import Bounds, Fleet, History, Reading, Tempo, decide
from millrace_operator.demand import Load
from millrace_operator.load_monitor import LoadFigures
from millrace_operator.metrics import Metrics, ServiceFigures
from millrace_operator.names import metrics_service
from millrace_operator.status import NO_REPLICAS
from millrace_server.cache.store import Lookup
from millrace_server.engine.handle import EngineHandle
from millrace_server.errors import DeadlinePassed, EngineError, Refused
from millrace_server.keys.ring import KeyRing
from millrace_server.lifecycle import Lifecycle
from millrace_server.settings import ServerSettings
from services import CHECKOUT

RULES = CHECKOUT / "charts/millrace/rules/millrace.yaml"
DASHBOARD = CHECKOUT / "charts/millrace/dashboards/millrace.json"
TARGET_LABELS = {"namespace", "service", "pod"}
"""Of what the Prometheus operator puts on every series that a ServiceMonitor or PodMonitor brings."""
NOT_NAMES = {"and", "or", "unless"}
STRING = re.compile(r'"[^"]*"')
GROUPING = re.compile(r"\b(?:by|on) \(([^)]*)\)")
SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)\b(?!\s*\()(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"')
REPLACED = re.compile(r'"(\w+)", "\$1", "(\w+)", "\(\.\*\)-metrics"')


@dataclass(frozen=True)
class Question:
    """What an expression asks for: (metric, label → value) per selector, and the labels by which it groups and joins."""

    selectors: tuple[tuple[str, dict[str, str]], ...]
    grouping: frozenset[str]


def read(expression: str) -> Question:
    """Of the PromQL that our files use."""
    # Braces, brackets and names inside of strings are none.
    strings = STRING.findall(expression)
    bare = re.sub(r"\[[^\]]*\]", "", STRING.sub('""', expression))
    groups = {label.strip() for group in GROUPING.findall(bare) for label in group.split(",")}
    selectors, left = [], iter(strings)
    for part in re.finditer(rf'{SELECTOR.pattern}|""', GROUPING.sub("", bare)):
        if part[0] == '""':
            next(left)
        elif part[1] not in NOT_NAMES:
            body = re.sub('""', lambda _: next(left), part[2] or "")
            selectors.append((part[1], dict(MATCHER.findall(body))))
    return Question(tuple(selectors), frozenset(groups))


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row")


ALERTS = {rule["alert"]: rule["expr"] for rule in rules()}
QUERIES = {f"{panel['title']} {target['refId']}": target["expr"] for panel in panels() for target in panel["targets"]}
EVERY = {**ALERTS, **QUERIES}


def exposed(registry: CollectorRegistry | bytes) -> dict[str, set[str]]:
    """Series → its labels, as a scrape brings them."""
    text = registry if isinstance(registry, bytes) else generate_latest(registry)
    families = text_string_to_metric_families(text.decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Of an operator and a server that have done everything once: a series with labels is there from its first time on."""
    operator = Metrics(leads=lambda: True, outdated=lambda: False, depth=lambda: 0, waited=lambda: 0.0)
    operator.service.tell(("default", "chat"), ServiceFigures(ready=1, desired=1, serves=True, reason="Serving"))
    operator.follow(lambda: [(("default", "chat"), LoadFigures(load=1, age=1.0, cause="LoadOnTarget", idle_gpu_seconds=0.0))])
    operator.passes.labels("ok").inc()
    operator.errors.labels("Defect").inc()
    operator.wrote("Service", "apply")

    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"team-a:{'0' * 64}\n")
    settings = ServerSettings.from_environment({"MODEL_NAME": "m", "API_KEYS_FILE": str(file)})
    server = Lifecycle.inference(settings, EngineHandle(settings, {})).metrics
    server.internal_registry.register(KeyRing(file))
    server.answered("/v1/completions", 200, 1.0, now=0.0)
    server.usage.asked("team-a")
    return exposed(operator.text()) | exposed(server.internal_registry)


def test_an_expression_is_read_as_it_is_meant() -> None:
    replaced = 'label_replace(sum by (a, b) (rate(c:d{e="f-{x}", g!="h"}[5m])) > 0.5, "i", "$1", "j", "(.*)-metrics")'
    assert read(f"{replaced} and on (k) l == 0 or absent(m)") == Question(
        (("c:d", {"e": "f-{x}", "g": "h"}), ("l", {}), ("m", {})), frozenset({"a", "b", "k"})
    )


@pytest.mark.parametrize("name", EVERY)
def test_every_series_and_label_that_is_asked_for_is_exposed(name: str, series: dict[str, set[str]]) -> None:
    question = read(EVERY[name])
    assert question.selectors
    known = set(TARGET_LABELS)
    for metric, matched in question.selectors:
        assert metric in series
        assert set(matched) <= series[metric] | TARGET_LABELS, metric
        known |= series[metric]
    known |= {replaced for replaced, _ in REPLACED.findall(EVERY[name])}
    assert question.grouping <= known


def test_every_value_that_is_asked_for_is_one_that_is_told() -> None:
    bounds = Bounds(minimum=1, maximum=2, target=1)

    def cause(*loads: int) -> str:
        reading = Reading(at=0.0, ready=1, loads=tuple(Load(queued=0, running=each) for each in loads))
        history = History(since=0.0).observe(reading, bounds=bounds, tempo=Tempo())
        return decide(bounds, Fleet(replicas=1, rolling=False), history, tempo=Tempo(), now=0.0).cause

    told = {
        "cause": {cause(), cause(9)},
        "reason": {NO_REPLICAS},
        "result": {each.name for each in Lookup},
        "status": {str(error.status) for error in (Refused, EngineError, DeadlinePassed)},
    }
    asked: dict[str, set[str]] = {label: set() for label in told}
    for expression in EVERY.values():
        for _, matched in read(expression).selectors:
            for label in told.keys() & matched.keys():
                asked[label] |= set(matched[label].split("|"))
    assert all(asked[label] for label in told)
    assert all(asked[label] <= told[label] for label in told), asked


def test_a_replica_s_series_are_found_by_the_name_of_its_metrics_service() -> None:
    assert metrics_service("chat") == "chat-metrics"
    by_service = [
        matched["service"] for expression in QUERIES.values() for _, matched in read(expression).selectors if "service" in matched
    ]
    assert by_service
    assert set(by_service) == {metrics_service("$name")}
    for alert, expression in ALERTS.items():
        assert ("service" in read(expression).grouping) == bool(REPLACED.findall(expression)), alert


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_names_its_service_says_what_to_do_and_uses_labels_that_it_has(rule: dict[str, Any]) -> None:
    question = read(rule["expr"])
    has = question.grouping | {replaced for replaced, _ in REPLACED.findall(rule["expr"])}
    texts = rule["annotations"]
    assert set(texts) == {"summary", "description"}
    assert set(re.findall(r"\$labels\.(\w+)", " ".join(texts.values()))) <= has
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["alert"].startswith("Millrace")


def test_the_alerts_and_the_cases_that_try_them_are_the_same() -> None:
    cases = yaml.safe_load((CHECKOUT / "e2e/alerts.yaml").read_text())
    assert {Path(each).name for each in cases["rule_files"]} == {RULES.name}
    fired = re.findall(r'alertname="(\w+)"', json.dumps(cases).replace("\\", ""))
    assert set(fired) == set(ALERTS)


def test_panels_do_not_overlap_and_ids_are_their_own() -> None:
    everything = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
