"""Fields that say on which nodes replicas run: affinity and spread, as in a pod, without what leads out of the namespace or names a node.

Pure; `api.py` has them in the spec.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from millrace_operator.fields import ATOMIC_LIST, LabelKey, LabelValue, Model, Rule, keys_are_labels, list_map, validations

_Weight = Annotated[int, Field(ge=1, le=100)]
_Values = Annotated[tuple[LabelValue, ...], Field(max_length=16, json_schema_extra=ATOMIC_LIST)]
_NEEDS_VALUES = Rule(
    cel="(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
    message="operators In and NotIn need values, Exists and DoesNotExist have none",
    path=".values",
)


class NodeRequirement(Model):
    """A node's label, compared."""

    key: LabelKey
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """`In` and `NotIn` compare with several values, `Gt` and `Lt` with one whole number."""
    values: _Values = ()
    """What the label is compared with."""

    rules: ClassVar = (
        Rule(
            cel="self.operator in ['Gt', 'Lt'] ? has(self.values) && size(self.values) == 1 && self.values[0].matches('^[0-9]{1,18}$') : "
            "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
            message="operators In and NotIn need values, Gt and Lt one whole number, Exists and DoesNotExist have none",
            path=".values",
        ),
    )


class NodeTerm(Model):
    """Nodes with all of these labels."""

    match_expressions: Annotated[tuple[NodeRequirement, ...], Field(min_length=1, max_length=8, json_schema_extra=ATOMIC_LIST)]
    """What the node's labels must be, all of it."""


class NodePreference(Model):
    """Nodes that are better than others."""

    weight: _Weight
    """How much better."""
    preference: NodeTerm
    """Which ones."""


class NodeTerms(Model):
    """Nodes of any of several kinds."""

    node_selector_terms: Annotated[tuple[NodeTerm, ...], Field(min_length=1, max_length=8, json_schema_extra=ATOMIC_LIST)]
    """The kinds."""


class NodeAffinity(Model):
    """Which nodes."""

    required: NodeTerms | None = Field(default=None, alias="requiredDuringSchedulingIgnoredDuringExecution")
    """Only these."""
    preferred: Annotated[tuple[NodePreference, ...], Field(max_length=8, json_schema_extra=ATOMIC_LIST)] = Field(
        default=(), alias="preferredDuringSchedulingIgnoredDuringExecution"
    )
    """Rather these."""


class LabelRequirement(Model):
    """A pod's label, compared."""

    key: LabelKey
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How it is compared."""
    values: _Values = ()
    """What it is compared with."""

    rules: ClassVar = (_NEEDS_VALUES,)


class PodSelector(Model):
    """Pods of the same namespace."""

    match_labels: Annotated[
        dict[LabelKey, LabelValue], Field(max_length=8, json_schema_extra=validations(keys_are_labels("matchLabels")))
    ] = Field(default_factory=dict)
    """Labels that they have; `app.kubernetes.io/instance` is the name of a service."""
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=8, json_schema_extra=ATOMIC_LIST)] = ()
    """What their labels must be, all of it."""


class PodTerm(Model):
    """The neighbourhood of pods."""

    label_selector: PodSelector
    """Which pods."""
    topology_key: LabelKey
    """Label of nodes: those with the same value are one neighbourhood, such as `topology.kubernetes.io/zone`."""


class PodPreference(Model):
    """A neighbourhood that is better than others, or worse."""

    weight: _Weight
    """How much."""
    pod_affinity_term: PodTerm
    """Which one."""


class PodAffinity(Model):
    """Near which pods, or away from them."""

    required: Annotated[tuple[PodTerm, ...], Field(max_length=8, json_schema_extra=ATOMIC_LIST)] = Field(
        default=(), alias="requiredDuringSchedulingIgnoredDuringExecution"
    )
    """Only there."""
    preferred: Annotated[tuple[PodPreference, ...], Field(max_length=8, json_schema_extra=ATOMIC_LIST)] = Field(
        default=(), alias="preferredDuringSchedulingIgnoredDuringExecution"
    )
    """Rather there."""


class Affinity(Model):
    """Near what replicas run, as in a pod; other namespaces and single nodes cannot be named."""

    node_affinity: NodeAffinity | None = None
    """Which nodes."""
    pod_affinity: PodAffinity | None = None
    """Near these pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Away from these pods."""


class SpreadConstraint(Model):
    """How evenly this service's replicas are spread. Each revision is spread by itself, or a rollout would count the pods it replaces."""

    max_skew: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many more replicas one domain may have than the emptiest one."""
    topology_key: LabelKey
    """Label of nodes: those with the same value are one domain, such as `topology.kubernetes.io/zone` or `kubernetes.io/hostname`."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = "DoNotSchedule"
    """`DoNotSchedule` leaves a replica waiting; `ScheduleAnyway` puts it where it disturbs least."""


SPREAD_KEYS = list_map("topologyKey", "whenUnsatisfiable")
