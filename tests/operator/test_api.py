"""The parser, its defaults, and what it shares with the server's settings."""

from typing import Any

import pytest

from millrace_operator.api import InvalidService, effective, parse
from millrace_operator.crd import root_schema
from millrace_operator.manifest import Manifest
from millrace_operator.source import ClaimSource, HubSource, ImageSource, InvalidSource, parse_source
from millrace_server.settings import ServerSettings
from services import manifest, service, stored

DIGEST = "sha256:" + "0123456789abcdef" * 4


def test_a_model_name_alone_is_a_complete_service() -> None:
    spec = service().spec
    assert spec.device == "cuda"
    assert spec.batching.max_size == 32
    assert spec.autoscaling.mode == "Embedded"
    assert spec.replicas is None


def test_computed_defaults_name_the_source_and_the_target() -> None:
    computed = effective(service())
    assert computed.source == "hf://owner/model"
    assert computed.slots == 32
    assert computed.target == 27


@pytest.mark.parametrize(
    ("spec", "slots", "target"),
    [
        ({"batching": {"maxSize": 1}}, 1, 1),
        ({"batching": {"maxSize": 8}}, 8, 6),
        ({"maxConcurrentRequests": 10}, 10, 8),
        ({"autoscaling": {"targetPerReplica": 5}}, 32, 5),
    ],
)
def test_the_target_is_85_percent_of_the_slots_unless_stated(spec: dict[str, Any], slots: int, target: int) -> None:
    computed = effective(service(**spec))
    assert (computed.slots, computed.target) == (slots, target)


def test_a_stored_object_that_the_schema_refuses_names_the_field() -> None:
    with pytest.raises(InvalidService, match=r"^spec\.batching\.maxSize: "):
        service(batching={"maxSize": 0})


def test_an_item_of_a_list_is_named_by_its_index() -> None:
    with pytest.raises(InvalidService, match=r"^spec\.tolerations\[1\]\.operator: "):
        service(tolerations=[{"operator": "Exists"}, {"operator": "Never"}])


def test_an_object_without_spec_is_refused() -> None:
    with pytest.raises(InvalidService):
        parse({"metadata": {"name": "chat", "namespace": "default", "uid": "1"}})


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert service(sharding={"degree": 2}).spec == service().spec


def test_a_status_of_another_version_is_forgotten() -> None:
    parsed = parse({**stored(manifest()), "status": {"observedGeneration": 7, "conditions": "none"}})
    assert parsed.status.observed_generation == -1


def test_the_status_is_read_as_it_was_written() -> None:
    written = {
        "observedGeneration": 3,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Serving",
                "message": "",
                "observedGeneration": 3,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
        "autoscaling": {"load": 4, "target": 2, "desired": 2, "freshPods": 1},
    }
    assert parse({**stored(manifest()), "status": written}).status.model_dump(by_alias=True, exclude_none=True, mode="json") == written


@pytest.mark.parametrize(("value", "paused"), [("true", True), ("false", False), ("", False)])
def test_only_true_pauses(value: str, paused: bool) -> None:
    annotated = stored(manifest())
    annotated["metadata"]["annotations"] = {"millrace.dev/paused": value}
    assert parse(annotated).paused is paused


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://gpt2", HubSource("gpt2", None)),
        ("hf://Qwen/Qwen2.5-0.5B-Instruct", HubSource("Qwen/Qwen2.5-0.5B-Instruct", None)),
        ("hf://owner/model@refs/pr/1", HubSource("owner/model", "refs/pr/1")),
        ("pvc://models", ClaimSource("models", "")),
        ("pvc://models.v2/house/v3", ClaimSource("models.v2", "/house/v3")),
        ("oci://demo#/model", ImageSource("demo", "/model")),
        ("oci://host:5000/a/b:latest#/model/v1", ImageSource("host:5000/a/b:latest", "/model/v1")),
        (f"oci://host/a@{DIGEST}#/model", ImageSource(f"host/a@{DIGEST}", "/model")),
    ],
)
def test_a_source_says_where_the_files_come_from(text: str, source: object) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpt2",
        "https://example.com/model",
        "file:///etc",
        "hf://",
        "hf://a/b/c",
        "hf://a/b@",
        "hf://-a/b",
        "hf://a/../b",
        "hf://a/b@$(HF_TOKEN)",
        "hf://a/b --to /etc",
        "hf://a/b\n",
        "pvc://",
        "pvc://other/../claim",
        "pvc://UPPER",
        "pvc://claim/",
        "pvc://namespace/name/..",
        "oci://image",
        "oci://image#",
        "oci://image#/",
        "oci://image#model",
        "oci://image#/../etc",
        "oci://image#/a;reboot",
        "oci://-image#/model",
        "oci://image@sha256:short#/model",
    ],
)
def test_other_sources_are_refused_with_the_three_forms(text: str) -> None:
    with pytest.raises(InvalidSource, match=r"hf://.*pvc://.*oci://"):
        parse_source(text)


SERVER = ServerSettings.model_json_schema()

SAME_NUMBER = {
    "model.maxLength": "MAX_LENGTH",
    "batching.maxSize": "MAX_BATCH_SIZE",
    "batching.timeoutMilliseconds": "BATCH_TIMEOUT_MS",
    "queue.maxSize": "MAX_QUEUE_SIZE",
    "maxConcurrentRequests": "MAX_CONCURRENT_REQUESTS",
    "requestTimeoutSeconds": "REQUEST_TIMEOUT",
    "drainSeconds": "DRAIN_SECONDS",
    "cache.ttlSeconds": "CACHE_TTL",
}
SAME_WORD = {"device": "DEVICE", "model.dtype": "DTYPE", "cache.type": "CACHE_TYPE"}


def field(path: str) -> Manifest:
    """A field of the spec, as the CRD describes it."""
    schema = root_schema()["properties"]["spec"]
    for name in path.split("."):
        schema = schema["properties"][name]
    return dict(schema)


def variable(name: str) -> Manifest:
    """A variable of the server, as its settings describe it; a choice stands in `enum`."""
    described = SERVER["properties"][name]
    (inner,) = [option for option in described.get("anyOf", [described]) if option != {"type": "null"}]
    reference = inner.get("$ref", "").rpartition("/")[2]
    return {**described, **SERVER["$defs"].get(reference, inner)}


@pytest.mark.parametrize(("path", "name"), SAME_NUMBER.items())
def test_the_server_accepts_every_number_that_the_resource_accepts(path: str, name: str) -> None:
    resource, server = field(path), variable(name)
    assert resource.get("default") == server.get("default")
    assert server.get("minimum", server.get("exclusiveMinimum")) <= resource["minimum"]
    assert resource["maximum"] <= server["maximum"]


@pytest.mark.parametrize(("path", "name"), SAME_WORD.items())
def test_the_server_knows_every_word_that_the_resource_knows(path: str, name: str) -> None:
    resource, server = field(path), variable(name)
    assert resource["default"] == server["default"]
    assert set(resource["enum"]) <= set(server["enum"])
