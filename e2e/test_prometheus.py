"""A real Prometheus finds what spec.monitoring.labels and the chart's monitoring values lead it to, and nothing else; alerts and dashboard
find their figures there.
"""

import json
import math
import re
from collections.abc import Iterator

import pytest
import yaml

import prometheus
from cluster.provider import CHECKOUT, Provider
from demo_service import PATIENT, Service, demo_service
from installation import NAMESPACE, REPLICAS, Installation, References
from kube import Kube, Manifest, fresh_namespace, wait_for
from prometheus import LABELS, Prometheus
from traffic import Traffic

pytestmark = pytest.mark.long

SEEN_SECONDS = 180
"""A changed monitor becomes a Secret, a file in the pod, which the kubelet brings up to two minutes later, a scrape."""
EXAMPLE = CHECKOUT / "manifests/autoscalers/keda-prometheus.yaml"
RULES = CHECKOUT / "charts/millrace/rules/millrace.yaml"
DASHBOARD = CHECKOUT / "charts/millrace/dashboards/millrace.json"
VALUES = [
    *(f"--set=monitoring.{each}.enabled=true" for each in ("operator", "alerts", "dashboards")),
    *(f"--set=monitoring.labels.{name}={value}" for name, value in LABELS.items()),
]
WITHOUT_FIGURES = {"Tokens generated per second, by tenant", "Errors per second"}
"""This service has no keys, and the operator may have made no error."""


@pytest.fixture(scope="module")
def watching(kube: Kube, provider: Provider, installation: Installation) -> Iterator[Prometheus]:
    """A Prometheus, and Millrace with everything that the chart has for one."""
    with prometheus.running(kube, provider) as running:
        try:
            installation.by_chart(values=VALUES)
            yield running
        finally:
            installation.by_chart()


@pytest.fixture(scope="module")
def labelled(kube: Kube, provider: Provider, references: References, watching: Prometheus, chat: Service) -> Iterator[Service]:
    """A service that this Prometheus selects, made when the ServiceMonitor of the other one, without labels, was there."""
    wait_for("the other one has a monitor", lambda: kube.exists("servicemonitor", chat.name, "-n", chat.namespace), seconds=60)
    with fresh_namespace(kube) as name:
        kube.apply(
            demo_service(
                "chat",
                namespace=name,
                model_image=references.model,
                autoscaling={"maxReplicas": 1},
                monitoring={"labels": LABELS},
                **PATIENT,
            )
        )
        yield Service(kube, name, "chat", provider.node_address()).wait_ready()


def scraped(watching: Prometheus, namespace: str) -> dict[str, str]:
    """Pod → how the last scrape of it went."""
    targets = (each for each in watching.targets() if each["labels"]["namespace"] == namespace)
    return {each["labels"]["pod"]: f"{each['health']} {each['lastError']}".strip() for each in targets}


def test_the_replicas_of_a_service_with_its_labels_are_scraped_and_those_of_one_without_are_not(
    kube: Kube, watching: Prometheus, labelled: Service, chat: Service
) -> None:
    pods = {pod["metadata"]["name"]: "up" for pod in kube.pods(labelled.namespace, labelled.name)}
    assert len(pods) == 1
    wait_for(
        "every replica is up",
        lambda: scraped(watching, labelled.namespace) == pods,
        seconds=SEEN_SECONDS,
        tell=lambda: scraped(watching, labelled.namespace),
    )
    assert watching.value(f'up{{namespace="{labelled.namespace}", service="{labelled.name}-metrics"}}') == 1
    assert scraped(watching, chat.namespace) == {}


def test_the_query_of_the_keda_example_tells_the_load(watching: Prometheus, labelled: Service) -> None:
    [scaled] = (each for each in yaml.safe_load_all(EXAMPLE.read_text()) if each["kind"] == "ScaledObject")
    [trigger] = scaled["spec"]["triggers"]
    query = trigger["metadata"]["query"].replace('"default"', f'"{labelled.namespace}"')
    assert labelled.namespace in query
    wait_for("nobody asks", lambda: watching.value(query) == 0, seconds=SEEN_SECONDS)
    with Traffic(labelled.url, clients=4, max_tokens=100) as traffic:
        wait_for("somebody asks", lambda: (watching.value(query) or 0) >= 1, seconds=60)
    assert traffic.answered > 0


def test_the_operators_are_scraped_and_their_services_keep_their_own_namespaces(watching: Prometheus, labelled: Service) -> None:
    wait_for(
        "every operator is up",
        lambda: sorted(scraped(watching, NAMESPACE).values()) == ["up"] * REPLICAS,
        seconds=SEEN_SECONDS,
        tell=lambda: scraped(watching, NAMESPACE),
    )
    ready = f'max(millrace_service_ready{{namespace="{labelled.namespace}", name="{labelled.name}"}})'
    wait_for("the service is told as ready", lambda: watching.value(ready) == 1, seconds=60)
    assert watching.value(f'sum(millrace_leader{{namespace="{NAMESPACE}"}})') == 1


def test_every_alert_is_loaded_and_evaluated_without_an_error(watching: Prometheus, labelled: Service) -> None:
    ours = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}

    def judged() -> dict[str, str]:
        return {name: f"{rule['health']} {rule.get('lastError', '')}".strip() for name, rule in watching.alerts().items()}

    wait_for("every alert is judged", lambda: judged() == dict.fromkeys(ours, "ok"), seconds=SEEN_SECONDS, tell=judged)
    # They have something to judge: who leads is known.
    wait_for("somebody is known to lead", lambda: watching.alerts()["MillraceNoLeader"]["state"] == "inactive", seconds=SEEN_SECONDS)


def test_every_panel_of_the_dashboard_has_figures_after_some_traffic(kube: Kube, watching: Prometheus, labelled: Service) -> None:
    [shipped] = kube.get("configmaps", "-n", NAMESPACE, "-l", "grafana_dashboard=1")["items"]
    panels: list[Manifest] = json.loads(shipped["data"][DASHBOARD.name])["panels"]
    queries = {f"{panel['title']}: {target['expr']}": target["expr"] for panel in panels for target in panel.get("targets", ())}

    def empty() -> set[str]:
        return {name for name, expression in queries.items() if not watching.query(_filled_in(expression, labelled))}

    with Traffic(labelled.url, clients=2) as traffic:
        wait_for(
            "every query finds series", lambda: {each.partition(":")[0] for each in empty()} <= WITHOUT_FIGURES, seconds=180, tell=empty
        )
        first_token = next(expression for expression in queries.values() if "first_token" in expression)
        wait_for(
            "the first token's time is a number",
            lambda: not math.isnan(watching.value(_filled_in(first_token, labelled)) or math.nan),
            seconds=60,
        )
    assert traffic.answered > 0


def _filled_in(expression: str, service: Service) -> str:
    """As Grafana fills in the dashboard's variables."""
    values = {"__rate_interval": f"{4 * prometheus.SCRAPE_SECONDS}s", "namespace": service.namespace, "name": service.name}
    return re.sub(r"\$(\w+)", lambda variable: values[variable[1]], expression)
