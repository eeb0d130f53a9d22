"""The CRD on a real API server: what it accepts, what it refuses and with which words, what it fills in.

Every rule has one accepting and one rejecting case; `test_every_rule_has_a_case` finds the ones that were forgotten.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given, settings

from cluster.control_plane import ControlPlane
from cluster.process import wait_until
from millrace_operator.api import parse
from millrace_operator.crd import crd, root_schema
from millrace_operator.desired import CHILD_KINDS, children
from millrace_operator.generate import yaml_text
from millrace_operator.manifest import Manifest
from millrace_operator.names import API_VERSION, KIND, PLURAL
from operators import install_service_monitors, remove_service_monitors
from services import CHECKOUT, EXAMPLES, PLATFORM, example, manifest, specs

NAMESPACE = "crd"
STRICT = {"dryRun": "All", "fieldValidation": "Strict"}
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


@pytest.fixture(scope="module")
def api(apiserver: ControlPlane) -> Iterator[httpx.Client]:
    """The API server with our CRD and a namespace that refuses pods that are not restricted."""
    with apiserver.client() as client:
        definition = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        apply(client, f"{definition}/{crd()['metadata']['name']}", crd())
        metadata = {"name": NAMESPACE, "labels": RESTRICTED}
        apply(client, f"/api/v1/namespaces/{NAMESPACE}", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        install_service_monitors(apiserver)
        wait_until(partial(serves, client), "the CRD is established", seconds=30)
        yield client
        remove_service_monitors(apiserver)


def apply(client: httpx.Client, path: str, body: Manifest) -> None:
    query = {"fieldManager": "test", "force": "true"}
    answer = client.patch(path, params=query, content=yaml_text(body), headers={"Content-Type": "application/apply-patch+yaml"})
    assert answer.status_code in (200, 201), answer.text


def serves(client: httpx.Client) -> bool:
    """Discovery comes first, the schema a moment later."""
    path = f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/{PLURAL}"
    return client.post(path, params={"dryRun": "All"}, json=manifest()).status_code == httpx.codes.CREATED


def create(client: httpx.Client, wanted: Manifest) -> httpx.Response:
    return client.post(f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/{PLURAL}", params=STRICT, json=wanted)


def refusals(answer: httpx.Response) -> dict[str, str]:
    """Path of a field → what is wrong with it."""
    assert answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY, answer.text
    return {cause["field"]: cause["message"] for cause in answer.json()["details"]["causes"]}


@dataclass(frozen=True)
class Case:
    """A rule: where it stands, words of its sentence, a spec that it accepts and one that it refuses."""

    path: str
    says: str
    accepted: Manifest
    refused: Manifest
    refused_at: str = ""
    """Where `path` has a place for an index."""


def model(**fields: Any) -> Manifest:  # noqa: ANN401 - fields as in YAML
    return {"model": {"name": "owner/model", **fields}}


OBJECT_NAME = "must be an object's name"
MODEL_NAME = "must be letters, digits and"
LABEL_VALUE = "must be at most 63 letters"
WHOLE_BYTES = "must be a whole number of bytes"
QUANTITY = "must be a quantity"
CPU = {"device": "cpu"}
COUNTED_BY_HAND = {"autoscaling": {"mode": "None"}}


def amount(part: str, resource: str, value: object) -> Manifest:
    return {"resources": {part: {resource: value}}}


def both(resource: str, request: object, limit: object) -> Manifest:
    return {"resources": {"requests": {resource: request}, "limits": {resource: limit}}}


REQUIRED, PREFERRED = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"
NODE_PLACES = (
    (f"{REQUIRED}.nodeSelectorTerms[].matchExpressions[]", lambda each: {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [each]}]}}),
    (f"{PREFERRED}[].preference.matchExpressions[]", lambda each: {PREFERRED: [{"weight": 1, "preference": {"matchExpressions": [each]}}]}),
)
POD_PLACES = (
    (f"{REQUIRED}[]", lambda term: {REQUIRED: [term]}),
    (f"{PREFERRED}[].podAffinityTerm", lambda term: {PREFERRED: [{"weight": 1, "podAffinityTerm": term}]}),
)


def node_cases() -> Iterator[Case]:
    good: Manifest = {"key": "zone", "operator": "In", "values": ["a"]}
    for place, built in NODE_PLACES:
        for field, says, bad in (
            (".key", "must be [PREFIX/]NAME", {**good, "key": "a b"}),
            (".values", "In and NotIn need values", {**good, "values": []}),
            (".values", "Gt and Lt one whole number", {**good, "operator": "Gt"}),
            (".values", "Exists and DoesNotExist have none", {**good, "operator": "Exists"}),
            (".values[]", LABEL_VALUE, {**good, "values": ["a b"]}),
        ):
            path = f"spec.affinity.nodeAffinity.{place}{field}"
            accepted, refused = ({"affinity": {"nodeAffinity": built(each)}} for each in (good, bad))
            yield Case(path, says, accepted, refused, path.replace("[]", "[0]"))


def pod_cases() -> Iterator[Case]:
    good: Manifest = {"labelSelector": {"matchLabels": {"a": "b"}}, "topologyKey": "zone"}

    def selects(**selector: Any) -> Manifest:  # noqa: ANN401 - fields as in YAML
        return {**good, "labelSelector": selector}

    def compares(**expression: Any) -> Manifest:  # noqa: ANN401 - fields as in YAML
        return selects(matchExpressions=[{"key": "a", "operator": "In", "values": ["b"], **expression}])

    for side in ("podAffinity", "podAntiAffinity"):
        for place, built in POD_PLACES:
            for field, says, bad in (
                (".topologyKey", "must be [PREFIX/]NAME", {**good, "topologyKey": "a b"}),
                (".labelSelector.matchLabels", "keys of matchLabels", selects(matchLabels={"a b": "c"})),
                (".labelSelector.matchLabels.*", LABEL_VALUE, selects(matchLabels={"a": "b c"})),
                (".labelSelector.matchExpressions[].key", "must be [PREFIX/]NAME", compares(key="a b")),
                (".labelSelector.matchExpressions[].values", "In and NotIn need values", compares(operator="Exists")),
                (".labelSelector.matchExpressions[].values[]", LABEL_VALUE, compares(values=["b c"])),
            ):
                path = f"spec.affinity.{side}.{place}{field}"
                accepted, refused = ({"affinity": {side: built(each)}} for each in (good, bad))
                yield Case(path, says, accepted, refused, path.replace("[]", "[0]").replace(".*", "[a]"))


CASES = [
    *node_cases(),
    *pod_cases(),
    Case(
        "spec.topologySpreadConstraints[].topologyKey",
        "must be [PREFIX/]NAME",
        {"topologySpreadConstraints": [{"topologyKey": "topology.kubernetes.io/zone"}]},
        {"topologySpreadConstraints": [{"topologyKey": "a b"}]},
        "spec.topologySpreadConstraints[0].topologyKey",
    ),
    Case("spec.model.name", MODEL_NAME, model(name="Qwen/Qwen2.5-0.5B"), model(name="$(whoami)")),
    Case("spec.model.name", "without spec.model.source", model(name="a:b", source="pvc://claim"), model(name="a:b")),
    Case("spec.model.aliases[]", MODEL_NAME, model(aliases=["chat"]), model(aliases=["a,b"]), "spec.model.aliases[0]"),
    Case("spec.model.source", "must be hf://REPOSITORY", model(source="hf://a/b@main"), model(source="https://example.com")),
    Case("spec.model.tokenSecret", OBJECT_NAME, model(tokenSecret="hub-token"), model(tokenSecret="other/hub-token")),
    Case(
        "spec.model.tokenSecret",
        "only used with an hf:// source",
        model(tokenSecret="t", source="hf://a/b"),
        model(tokenSecret="t", source="pvc://claim"),
    ),
    Case("spec.accelerators", "need device cuda", {"device": "cuda", "accelerators": {}}, {**CPU, "accelerators": {}}),
    Case(
        "spec.accelerators.resource",
        "must be DOMAIN/NAME",
        {"accelerators": {"resource": "nvidia.com/mig-1g.10gb"}},
        {"accelerators": {"resource": "gpu"}},
    ),
    Case(
        "spec.accelerators.resource",
        "extended resource of a device plugin",
        {"accelerators": {"resource": "amd.com/gpu"}},
        {"accelerators": {"resource": "kubernetes.io/gpu"}},
    ),
    Case(
        "spec.drainSeconds",
        "at least requestTimeoutSeconds",
        {"drainSeconds": 30, "requestTimeoutSeconds": 30},
        {"drainSeconds": 29, "requestTimeoutSeconds": 30},
    ),
    Case("spec.replicas", "needs autoscaling.mode None", {**COUNTED_BY_HAND, "replicas": 0}, {"replicas": 2}),
    Case(
        "spec.autoscaling.minReplicas",
        "not be greater than maxReplicas",
        {"autoscaling": {"minReplicas": 2, "maxReplicas": 2}},
        {"autoscaling": {"minReplicas": 5}},
    ),
    Case(
        "spec.autoscaling.targetPerReplica",
        "never exceeded",
        {"autoscaling": {"targetPerReplica": 8}, "batching": {"maxSize": 8}, "queue": {"maxSize": 1}},
        {"autoscaling": {"targetPerReplica": 8}, "batching": {"maxSize": 8}, "queue": {"maxSize": 0}},
    ),
    Case(
        "spec.cache.urlSecret",
        OBJECT_NAME,
        {"cache": {"type": "redis", "urlSecret": "shared-redis"}},
        {"cache": {"type": "redis", "urlSecret": "redis://host"}},
    ),
    Case(
        "spec.cache.urlSecret",
        "needs type redis",
        {"cache": {"type": "redis", "urlSecret": "shared-redis"}},
        {"cache": {"urlSecret": "shared-redis"}},
    ),
    *(
        Case(f"spec.resources.{part}.{resource}", said, amount(part, resource, good), amount(part, resource, bad))
        for part in ("requests", "limits")
        for resource, said, good, bad in (
            ("cpu", QUANTITY, 2, "two"),
            ("memory", WHOLE_BYTES, "8Gi", "8GB"),
            ("memory", WHOLE_BYTES, "1.5Gi", "500m"),
            ("memory", WHOLE_BYTES, 1073741824, "1.1Ki"),
            ("ephemeral-storage", WHOLE_BYTES, "1.5Ti", "-1Gi"),
        )
    ),
    *(
        Case("spec.resources.requests", f"request of {resource} must not", both(resource, *good), both(resource, *bad))
        for resource, good, bad in (
            ("cpu", (2, "2"), (1, "999m")),
            ("memory", ("1000Mi", "1Gi"), ("2Gi", "2G")),
            ("ephemeral-storage", ("1Gi", "1Gi"), ("1Ti", "1Gi")),
        )
    ),
    Case("spec.nodeSelector", "keys of nodeSelector", {"nodeSelector": {"gpu.io/Model": "h200"}}, {"nodeSelector": {"a b": "c"}}),
    Case("spec.nodeSelector.*", LABEL_VALUE, {"nodeSelector": {"zone": ""}}, {"nodeSelector": {"zone": "a/b"}}, "spec.nodeSelector[zone]"),
    Case(
        "spec.tolerations[].key",
        "must be [PREFIX/]NAME",
        {"tolerations": [{"key": "a.b/c"}]},
        {"tolerations": [{"key": "a b"}]},
        "spec.tolerations[0].key",
    ),
    Case(
        "spec.tolerations[].value",
        LABEL_VALUE,
        {"tolerations": [{"key": "a", "value": "b"}]},
        {"tolerations": [{"key": "a", "value": "-"}]},
        "spec.tolerations[0].value",
    ),
    Case(
        "spec.tolerations[].operator",
        "without key needs operator Exists",
        {"tolerations": [{"operator": "Exists"}]},
        {"tolerations": [{}]},
        "spec.tolerations[0].operator",
    ),
    Case(
        "spec.tolerations[].value",
        "only used with operator Equal",
        {"tolerations": [{"key": "a", "value": "b"}]},
        {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
        "spec.tolerations[0].value",
    ),
    Case(
        "spec.tolerations[].tolerationSeconds",
        "only used with effect NoExecute",
        {"tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 1}]},
        {"tolerations": [{"key": "a", "tolerationSeconds": 1}]},
        "spec.tolerations[0].tolerationSeconds",
    ),
    Case("spec.priorityClassName", OBJECT_NAME, {"priorityClassName": "high"}, {"priorityClassName": "High"}),
    Case("spec.runtimeClassName", OBJECT_NAME, {"runtimeClassName": "nvidia"}, {"runtimeClassName": "a..b"}),
    Case("spec.image", "must be an image", {"image": "host:5000/a/b:c"}, {"image": "a b"}),
    Case(
        "spec.imagePullSecrets[].name",
        OBJECT_NAME,
        {"imagePullSecrets": [{"name": "registry"}]},
        {"imagePullSecrets": [{"name": "ns/registry"}]},
        "spec.imagePullSecrets[0].name",
    ),
    Case("spec.podLabels", "keys of podLabels", {"podLabels": {"team": "a"}}, {"podLabels": {"-": "a"}}),
    Case("spec.podLabels", "must not begin with", {"podLabels": {"a.io/name": "a"}}, {"podLabels": {"app.kubernetes.io/name": "a"}}),
    Case("spec.podLabels.*", LABEL_VALUE, {"podLabels": {"team": "a"}}, {"podLabels": {"team": "a b"}}, "spec.podLabels[team]"),
    Case("spec.podAnnotations", "keys of podAnnotations", {"podAnnotations": {"a.io/b": "c d"}}, {"podAnnotations": {"a/b/c": ""}}),
    Case(
        "spec.podAnnotations",
        "must not begin with",
        {"podAnnotations": {"kubernetes.io/x": ""}},
        {"podAnnotations": {"container.apparmor.security.beta.kubernetes.io/server": "unconfined"}},
    ),
    Case("spec.apiKeysSecret", OBJECT_NAME, {"apiKeysSecret": "team-keys"}, {"apiKeysSecret": "team/keys"}),
    Case(
        "spec.monitoring.labels",
        "keys of labels",
        {"monitoring": {"labels": {"release": "prometheus"}}},
        {"monitoring": {"labels": {"a b": "c"}}},
    ),
    Case(
        "spec.monitoring.labels",
        "must not begin with",
        {"monitoring": {"labels": {"example.com/prometheus": "a"}}},
        {"monitoring": {"labels": {"app.kubernetes.io/managed-by": "a"}}},
    ),
    Case(
        "spec.monitoring.labels.*",
        LABEL_VALUE,
        {"monitoring": {"labels": {"release": "prometheus"}}},
        {"monitoring": {"labels": {"release": "a b"}}},
        "spec.monitoring.labels[release]",
    ),
    Case(
        "spec.service.annotations", "keys of annotations", {"service": {"annotations": {"a": ""}}}, {"service": {"annotations": {"": "a"}}}
    ),
    Case(
        "spec.service.annotations",
        "must not begin with",
        {"service": {"annotations": {"a.io/b": ""}}},
        {"service": {"annotations": {"millrace.dev/applied-hash": ""}}},
    ),
    Case(
        "spec.service.nodePort",
        "needs type NodePort",
        {"service": {"type": "NodePort", "nodePort": 30080}},
        {"service": {"nodePort": 30080}},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.path}: {case.says}")
def test_a_rule_refuses_with_a_sentence_at_the_field_and_lets_its_neighbour_pass(api: httpx.Client, case: Case) -> None:
    accepted = create(api, manifest(**case.accepted))
    assert accepted.status_code == httpx.codes.CREATED, accepted.text
    refused = refusals(create(api, manifest(**case.refused)))
    path = case.refused_at or case.path
    assert path in refused, refused
    assert case.says in refused[path]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a" * 45, None),
        ("a" * 46, "of at most 45 characters"),
        ("chat-v2", None),
        ("chat.v2", "must be a DNS label"),
        ("2chat", "begins with a letter"),
        ("redis", None),
        ("chat-redis", "must not end with -redis or -metrics"),
        ("chat-metrics", "must not end with -redis or -metrics"),
    ],
)
def test_a_name_leaves_room_for_the_names_of_the_children(api: httpx.Client, name: str, says: str | None) -> None:
    answer = create(api, manifest(name))
    if says is None:
        assert answer.status_code == httpx.codes.CREATED, answer.text
    else:
        assert says in refusals(answer)["metadata.name"]


def rules(schema: Manifest, path: str) -> Iterator[tuple[str, str]]:
    """(path, sentence) of every rule of a schema."""
    for rule in schema.get("x-kubernetes-validations", []):
        yield path + rule.get("fieldPath", ""), rule["message"]
    for name, field in schema.get("properties", {}).items():
        yield from rules(field, f"{path}.{name}")
    if "items" in schema:
        yield from rules(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from rules(schema["additionalProperties"], f"{path}.*")


def test_every_rule_has_a_case() -> None:
    uncovered = [
        (path, sentence)
        for path, sentence in rules(root_schema()["properties"]["spec"], "spec")
        if not any(case.path == path and case.says in sentence for case in CASES)
    ]
    assert uncovered == []


def bounded(schema: Manifest, path: str) -> Iterator[tuple[str, Manifest]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from bounded(field, f"{path}.{name}")
    for key, place in (("items", "[]"), ("additionalProperties", ".*")):
        if key in schema:
            yield from bounded(schema[key], f"{path}{place}")


def test_every_number_string_list_and_map_of_the_spec_is_bounded() -> None:
    for path, schema in bounded(root_schema()["properties"]["spec"], "spec"):
        match schema.get("type", "quantity"):
            case "integer":
                assert {"minimum", "maximum"} <= set(schema), path
            case "string":
                assert "enum" in schema or "maxLength" in schema, path
            case "quantity":
                assert "maxLength" in schema, path
            case "array":
                assert {"maxItems", "x-kubernetes-list-type"} <= set(schema), path
            case "object":
                assert "properties" in schema or "maxProperties" in schema, path


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"batching": {"maxSize": 0}}, "spec.batching.maxSize"),
        ({"batching": {"maxSize": 1025}}, "spec.batching.maxSize"),
        ({"accelerators": {"count": 2}}, "spec.accelerators.count"),
        ({"device": "tpu"}, "spec.device"),
        ({"cache": {"type": "disk"}}, "spec.cache.type"),
        ({"imagePullSecrets": [{"name": "a"}, {"name": "a"}]}, "spec.imagePullSecrets[1]"),
        ({"topologySpreadConstraints": [{"topologyKey": "a"}, {"topologyKey": "a", "maxSkew": 2}]}, "spec.topologySpreadConstraints[1]"),
        ({"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": []}}}}, f"spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms"),
        (model(name=""), "spec.model.name"),
        ({"model": {}}, "spec.model.name"),
        ({"queue": {"maxSize": "many"}}, "spec.queue.maxSize"),
    ],
)
def test_a_value_out_of_bounds_is_refused_at_its_field(api: httpx.Client, spec: Manifest, path: str) -> None:
    assert path in refusals(create(api, {**manifest(), "spec": {**manifest()["spec"], **spec}}))


def test_a_misspelt_field_is_refused_when_the_client_asks_for_strictness(api: httpx.Client) -> None:
    answer = create(api, manifest(replica=2))
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert 'unknown field "spec.replica"' in answer.json()["message"]


def test_defaults_are_visible_in_the_stored_object(api: httpx.Client) -> None:
    created = create(api, manifest()).json()
    assert created["spec"] == {
        "model": {"name": "owner/model", "dtype": "auto"},
        "device": "cuda",
        "batching": {"maxSize": 32, "timeoutMilliseconds": 50},
        "queue": {"maxSize": 1000},
        "maxConcurrentRequests": 100,
        "requestTimeoutSeconds": 30,
        "drainSeconds": 60,
        "cache": {"type": "memory", "ttlSeconds": 3600},
        "autoscaling": {"mode": "Embedded", "minReplicas": 1, "maxReplicas": 4},
        "resources": {"requests": {}, "limits": {}},
        "service": {"type": "ClusterIP"},
        "monitoring": {"enabled": True},
        "rollout": {},
    }
    assert created["status"] == {"observedGeneration": -1}


def test_parsing_adds_nothing_to_what_the_api_server_filled_in(api: httpx.Client) -> None:
    created = create(api, manifest()).json()
    bare = {**created, "spec": manifest()["spec"]}
    assert parse(created).spec == parse(bare).spec


def test_a_plain_apply_can_hold_the_crd() -> None:
    """It keeps the whole object in an annotation, which is limited to 256 kB with everything else."""
    assert len((CHECKOUT / "crds/inferenceservices.millrace.dev.yaml").read_bytes()) < 100_000


def post(client: httpx.Client, child: Manifest, *, plural: str) -> httpx.Response:
    root = f"/apis/{child['apiVersion']}" if "/" in child["apiVersion"] else f"/api/{child['apiVersion']}"
    return client.post(f"{root}/namespaces/{NAMESPACE}/{plural}", params=STRICT, json=child)


def assert_children_are_accepted(client: httpx.Client, accepted: Manifest) -> None:
    """Every child, and a pod of each template, whose security only then is judged."""
    plurals = {kind.kind: kind.plural for kind in CHILD_KINDS}
    wish = children(parse(accepted), platform=PLATFORM)
    for child in wish:
        answer = post(client, child, plural=plurals[child["kind"]])
        assert answer.status_code == httpx.codes.CREATED, answer.text
        assert "warning" not in answer.headers, answer.headers["warning"]
    for template in (child["spec"]["template"] for child in wish if child["kind"] == "Deployment"):
        spec = {key: value for key, value in template["spec"].items() if key not in ("priorityClassName", "runtimeClassName")}
        metadata = {**template["metadata"], "name": "pod"}
        answer = post(client, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, plural="pods")
        assert answer.status_code == httpx.codes.CREATED, answer.text


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_and_its_children_are_accepted(api: httpx.Client, name: str) -> None:
    wanted = example(name)
    wanted["metadata"] = {**wanted["metadata"], "namespace": NAMESPACE}
    answer = create(api, wanted)
    assert answer.status_code == httpx.codes.CREATED, answer.text
    assert_children_are_accepted(api, answer.json())


@pytest.mark.parametrize("path", sorted((CHECKOUT / "manifests/autoscalers").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_manifest_for_another_autoscaler_is_accepted(api: httpx.Client, path: Path) -> None:
    """But for KEDA's own kind, which this API server does not have."""
    plurals = {KIND: PLURAL, "HorizontalPodAutoscaler": "horizontalpodautoscalers", "NetworkPolicy": "networkpolicies"}
    for wanted in yaml.safe_load_all(path.read_text()):
        if wanted["kind"] != "ScaledObject":
            answer = post(api, wanted, plural=plurals[wanted["kind"]])
            assert answer.status_code == httpx.codes.CREATED, answer.text


def test_whatever_is_admitted_has_children_that_are_admitted(api: httpx.Client) -> None:
    admitted = []

    @given(spec=specs())
    @settings(max_examples=100, derandomize=True)
    def check(spec: Manifest) -> None:
        answer = create(api, {**manifest(), "spec": spec})
        if answer.status_code == httpx.codes.CREATED:
            admitted.append(spec)
            assert_children_are_accepted(api, answer.json())
        else:
            assert refusals(answer)

    check()
    assert len(admitted) >= 20, "too few of the generated specs were admitted to prove anything"


def test_scale_writes_replicas_and_reads_the_status(api: httpx.Client) -> None:
    path = f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/{PLURAL}"
    wanted = manifest("scaled", **COUNTED_BY_HAND, replicas=1)
    assert api.post(path, json=wanted).status_code == httpx.codes.CREATED
    status = {"status": {"replicas": 1, "selector": "app=chat"}}
    headers = {"Content-Type": "application/merge-patch+json"}
    assert api.patch(f"{path}/scaled/status", json=status, headers=headers).status_code == httpx.codes.OK
    scaled = api.patch(f"{path}/scaled/scale", json={"spec": {"replicas": 3}}, headers=headers).json()
    assert scaled["spec"] == {"replicas": 3}
    assert scaled["status"] == {"replicas": 1, "selector": "app=chat"}
    assert api.get(f"{path}/scaled").json()["spec"]["replicas"] == 3
    api.delete(f"{path}/scaled").raise_for_status()


def test_the_committed_crd_is_one_document_of_the_kind_it_defines() -> None:
    (definition,) = yaml.safe_load_all((CHECKOUT / "crds/inferenceservices.millrace.dev.yaml").read_text())
    assert definition["spec"]["names"]["kind"] == KIND
