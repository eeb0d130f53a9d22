"""The values of charts/millrace: the only source of values.schema.json, by which helm refuses a misspelt value. Pure."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from millrace_operator.manifest import Manifest

Text = Annotated[str, Field(max_length=512)]


class Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True)


class RedisImage(Values):
    """The Redis of services that want one (spec.cache.type: redis); nodes ask the registry as for the server's image."""

    repository: Annotated[str, Field(min_length=1, max_length=512)] = "redis"
    """Registry, if any, and name."""
    tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")] = "8-alpine"
    """Must have `redis-server`, of version 6 or later, and `redis-cli`."""
    digest: Annotated[str, Field(pattern=r"^(sha256:[a-f0-9]{64})?$")] = ""
    """Pins the image; the tag is then left out."""


class ImageValues(Values):
    """An image. Its tag is the chart's own version unless it is stated; a digest goes before."""

    repository: Annotated[str, Field(min_length=1, max_length=512)]
    """Registry, if any, and name."""
    tag: Annotated[str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$")] = ""
    """Empty: the chart's appVersion."""
    digest: Annotated[str, Field(pattern=r"^(sha256:[a-f0-9]{64})?$")] = ""
    """Pins the image; the tag is then left out."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes ask the registry."""


class OperatorImage(ImageValues):
    """The operator."""

    repository: Annotated[str, Field(min_length=1, max_length=512)] = "millrace/operator"
    """Registry, if any, and name."""


class ServerImage(ImageValues):
    """The server, unless an InferenceService names its own."""

    repository: Annotated[str, Field(min_length=1, max_length=512)] = "millrace/server"
    """Registry, if any, and name."""


class NamedObject(Values):
    """An object of the release's namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Its name."""


class CrdValues(Values):
    """The CustomResourceDefinition and the roles by which users may use it."""

    install: bool = True
    """False where somebody else installs it, such as a cluster's administrator."""


class Switch(Values):
    """Something that is rendered only when it is wanted."""

    enabled: bool = False
    """Whether it is there."""


class MonitoringValues(Values):
    """What a Prometheus of the Prometheus operator, and a Grafana with its sidecar, find in the release's namespace."""

    labels: dict[str, str] = {}
    """Of the PodMonitor and the PrometheusRule, by which your Prometheus selects them, such as `release: prometheus`."""
    operator: Switch = Switch()
    """A PodMonitor, by which Prometheus scrapes the operators. The alerts and the dashboard need their figures."""
    alerts: Switch = Switch()
    """A PrometheusRule with charts/millrace/rules."""
    dashboards: Switch = Switch()
    """A ConfigMap with charts/millrace/dashboards and the label `grafana_dashboard: "1"`, which Grafana's sidecar looks for."""


class ResourceValues(Values):
    """What the operator asks of its node."""

    requests: dict[str, str | int] = {"cpu": "50m", "memory": "128Mi"}
    """Reserved."""
    limits: dict[str, str | int] = {"memory": "512Mi"}
    """The most it may use. No limit of CPU: it would only slow down a burst."""


class ChartValues(Values):
    """The platform: one operator."""

    image: OperatorImage = OperatorImage()
    """The operator's image."""
    server_image: ServerImage = ServerImage()
    """The image of every replica, unless an InferenceService names its own."""
    redis_image: RedisImage = RedisImage()
    """The image of the Redis of services that want one."""
    image_pull_secrets: list[NamedObject] = []
    """Secrets of the release's namespace, for the operator's image."""
    replicas: Annotated[int, Field(ge=0, le=5)] = 2
    """Operators; one leads and the others wait to take over. Traffic does not depend on any of them."""
    watch_namespaces: list[Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]] = []
    """Namespaces to serve, with a Role in each. Empty: all of them, with a ClusterRole."""
    environment: Annotated[dict[str, str], Field(json_schema_extra={"propertyNames": {"pattern": "^MILLRACE_[A-Z_]+$"}})] = {}
    """Further settings of the operator, such as MILLRACE_LOG_LEVEL; the names are in operator/millrace_operator/settings.py."""
    resources: ResourceValues = ResourceValues()
    """What the operator asks of its node."""
    node_selector: dict[str, str] = {}
    """Labels that the operator's node must have."""
    tolerations: list[dict[str, str | int]] = []
    """Taints that the operator accepts."""
    priority_class_name: Text = ""
    """PriorityClass of the operator."""
    crds: CrdValues = CrdValues()
    """The CustomResourceDefinition and the roles by which users may use it."""
    monitoring: MonitoringValues = MonitoringValues()
    """What Prometheus and Grafana find: metrics of the operators, alerts, a dashboard."""
    global_: Annotated[dict[str, object], Field(alias="global")] = {}
    """Given by a parent chart; not used."""


def values_schema() -> Manifest:
    return {"$schema": "https://json-schema.org/draft-07/schema#", **ChartValues.model_json_schema(by_alias=True)}
