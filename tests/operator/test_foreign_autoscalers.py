"""The manifests for other autoscalers name what the operator makes: a rename there must not leave them behind."""

from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from millrace_operator import names
from millrace_operator.api import InferenceService, effective, parse
from millrace_operator.desired.deployment import deployment
from millrace_operator.desired.metrics_service import metrics_service
from millrace_operator.names import KIND
from millrace_server.load import Load
from millrace_server.settings import DEFAULT_PROMETHEUS_PORT
from services import CHECKOUT, PLATFORM, stored

FOLDER = CHECKOUT / "manifests/autoscalers"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))


def read(name: str) -> tuple[InferenceService, dict[str, Any]]:
    """The service, and the other objects by kind."""
    objects = {each["kind"]: each for each in yaml.safe_load_all((FOLDER / name).read_text())}
    return parse(stored(objects.pop(KIND))), objects


def scaler(name: str) -> dict[str, Any]:
    _, others = read(name)
    return dict(others.get("ScaledObject") or others["HorizontalPodAutoscaler"])


@pytest.mark.parametrize("name", FILES)
def test_the_count_is_left_to_the_autoscaler_whose_target_is_the_services_deployment(name: str) -> None:
    service, _ = read(name)
    target = scaler(name)["spec"]["scaleTargetRef"]
    assert (service.spec.autoscaling.mode, service.spec.replicas) == ("None", None)
    made = deployment(service, platform=PLATFORM)
    assert target["name"] == made["metadata"]["name"]
    assert target.get("kind", "Deployment") == made["kind"]
    assert "replicas" not in made["spec"]


def test_keda_asks_the_replicas_at_the_metrics_service_for_fields_that_they_tell() -> None:
    service, others = read("keda-metrics-api.yaml")
    triggers = others["ScaledObject"]["spec"]["triggers"]
    for trigger in triggers:
        url = urlsplit(trigger["metadata"]["url"])
        port = metrics_service(service)["spec"]["ports"][0]["port"]
        assert (url.hostname, url.port, url.path) == (f"{names.metrics_service(service.name)}.default.svc", port, "/internal/load")
        assert port == DEFAULT_PROMETHEUS_PORT
        assert trigger["metadata"]["valueLocation"] in Load.__struct_fields__
    formula = others["ScaledObject"]["spec"]["advanced"]["scalingModifiers"]["formula"]
    assert set(formula.split(" + ")) == {trigger["name"] for trigger in triggers} == {"running", "queued"}


def test_keda_may_reach_the_port_that_it_asks() -> None:
    service, others = read("keda-metrics-api.yaml")
    policy = others["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == names.selector_labels(service.name)
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": DEFAULT_PROMETHEUS_PORT}]


def test_keda_aims_at_the_target_of_mode_embedded() -> None:
    service, others = read("keda-metrics-api.yaml")
    assert others["ScaledObject"]["spec"]["advanced"]["scalingModifiers"]["target"] == str(effective(service).target)
    service, others = read("keda-prometheus.yaml")
    assert others["ScaledObject"]["spec"]["triggers"][0]["metadata"]["threshold"] == str(effective(service).target)
