"""What a service's children look like: rules that hold for every service, and what single fields change."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from millrace_operator.api import parse
from millrace_operator.desired import CHILD_KINDS, children, origin
from millrace_operator.desired.pod import IN_A_SECRET, server_settings
from millrace_operator.manifest import Manifest
from millrace_operator.names import MAX_NAME_LENGTH, RESERVED_SUFFIXES, child_labels, instance_labels, selector_labels
from millrace_operator.names import redis_secret as redis_secret_name
from millrace_operator.source import ClaimSource, HubSource, ImageSource, parse_source
from millrace_server.settings import ServerSettings
from services import PLATFORM, UID, manifest, service, specs, stored

DIGEST = "sha256:" + "0" * 64
REDIS = {"type": "redis"}
COMMIT = "9213176726f574b556790deb65791e0c5aa438b6"


def wish(**spec: Any) -> dict[str, Manifest]:  # noqa: ANN401 - fields of a spec
    """Kind and name → child."""
    return {f"{child['kind']}/{child['metadata']['name']}": child for child in children(service(**spec), platform=PLATFORM)}


def deployment(**spec: Any) -> Manifest:  # noqa: ANN401 - fields of a spec
    return wish(**spec)["Deployment/chat"]


def pod(**spec: Any) -> Manifest:  # noqa: ANN401 - fields of a spec
    return dict(deployment(**spec)["spec"]["template"]["spec"])


def containers(pod_spec: Manifest) -> list[Manifest]:
    return [*pod_spec.get("initContainers", ()), *pod_spec["containers"]]


def environment(container: Manifest) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


@given(spec=specs())
@settings(max_examples=60, derandomize=True)
def test_every_pod_of_every_valid_spec_is_restricted(spec: Manifest) -> None:
    wanted = parse(stored({**manifest(), "spec": spec | {"model": spec["model"] | {"source": "hf://owner/model"}}}))
    for child in children(wanted, platform=PLATFORM):
        if child["kind"] == "Deployment":
            assert_restricted(child["spec"]["template"]["spec"])


def assert_restricted(pod_spec: Manifest) -> None:
    assert pod_spec["automountServiceAccountToken"] is False
    assert pod_spec["securityContext"]["runAsNonRoot"] is True
    assert pod_spec["securityContext"]["runAsUser"] > 0
    assert pod_spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers", "serviceAccountName", "nodeName", "ephemeralContainers"} & set(pod_spec)
    for container in containers(pod_spec):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any("hostPort" in port for port in container.get("ports", ()))
        assert "envFrom" not in container
    for volume in pod_spec["volumes"]:
        assert set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim", "secret"}
        assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"]


@given(spec=specs())
@settings(max_examples=60, derandomize=True)
def test_no_word_of_a_spec_reaches_a_shell_or_a_variable_reference(spec: Manifest) -> None:
    wanted = parse(stored({**manifest(), "spec": {"device": "cpu", "model": spec["model"]}}))
    if wanted.spec.model.source is None:
        return
    for container in containers(children(wanted, platform=PLATFORM)[-1]["spec"]["template"]["spec"]):
        assert container["command"][0] in ("python", "cp")
        words = [*container["command"], *container["args"], *environment(container).values()]
        assert not any("$" in word or "\n" in word or " " in word for word in words)


@given(spec=specs())
@settings(max_examples=60, derandomize=True)
def test_the_server_reads_back_what_the_operator_wrote(spec: Manifest) -> None:
    wanted = parse(stored({**manifest(), "spec": spec | {"model": spec["model"] | {"source": "hf://owner/model"}}}))
    (server,) = children(wanted, platform=PLATFORM)[-1]["spec"]["template"]["spec"]["containers"]
    secret = {variable["name"]: IN_A_SECRET for variable in server["env"] if variable["name"] == "REDIS_URL"}
    read = ServerSettings.from_environment({**environment(server), **secret})
    assert read == server_settings(wanted.spec, HubSource("owner/model", None))


def test_every_child_is_owned_by_the_service_without_holding_up_its_deletion() -> None:
    for child in wish().values():
        (owner,) = child["metadata"]["ownerReferences"]
        assert owner == {"apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService", "name": "chat", "uid": UID, "controller": True}


def test_every_child_is_of_a_kind_that_the_operator_watches_and_prunes() -> None:
    watched = {(kind.api_version, kind.kind) for kind in CHILD_KINDS}
    assert {(child["apiVersion"], child["kind"]) for child in wish(cache=REDIS).values()} == watched


def test_every_child_has_the_labels_that_the_operator_watches_by() -> None:
    for child in wish(cache=REDIS).values():
        assert instance_labels("chat").items() <= child["metadata"]["labels"].items()


def test_the_labels_of_the_resource_are_not_copied() -> None:
    labelled = stored(manifest())
    labelled["metadata"]["labels"] = {"argocd.argoproj.io/instance": "app"}
    assert "argoproj" not in json.dumps(children(parse(labelled), platform=PLATFORM))


def test_names_of_children_are_labels_and_never_collide() -> None:
    longest = "a" * MAX_NAME_LENGTH
    names = [child["metadata"]["name"] for child in children(service(longest, cache=REDIS), platform=PLATFORM)]
    assert all(len(name) <= 63 for name in [*names, redis_secret_name(longest, UID)])
    assert {name.removeprefix(longest) for name in names} <= {"", *RESERVED_SUFFIXES}


def test_the_name_of_the_model_is_data_and_never_a_label() -> None:
    name = "Qwen/Qwen2.5:latest@v1"
    everything = wish(model={"name": name, "source": "hf://owner/model"})
    for child in everything.values():
        assert name not in json.dumps(child["metadata"])
    (server,) = everything["Deployment/chat"]["spec"]["template"]["spec"]["containers"]
    assert environment(server)["MODEL_NAME"] == name


@pytest.mark.parametrize(
    ("kind", "path", "field"),
    [
        ("Service", "spec.ports[0].nodePort", "spec.service.nodePort"),
        ("Service", "metadata.annotations[example.com/a]", "spec.service.annotations"),
        ("Deployment", "spec.template.annotations[example.com/a]", "spec.podAnnotations"),
        ("Deployment", "spec.template.annotations.example.com/a", "spec.podAnnotations"),
        ("Deployment", "spec.selector", None),
        ("Service", "spec.selector", None),
    ],
)
def test_a_refused_field_is_traced_to_the_field_that_the_user_set(kind: str, path: str, field: str | None) -> None:
    assert origin(kind, path) == field


def test_the_same_service_always_gives_the_same_wish() -> None:
    assert wish() == wish()


@pytest.mark.parametrize(
    ("spec", "replicas"),
    [
        ({}, None),
        ({"autoscaling": {"mode": "None"}}, None),
        ({"autoscaling": {"mode": "None"}, "replicas": 3}, 3),
        ({"autoscaling": {"mode": "None"}, "replicas": 0}, 0),
        # Refused at admission; should it be stored all the same, the autoscaler keeps the field.
        ({"autoscaling": {"mode": "Embedded"}, "replicas": 3}, None),
    ],
)
def test_the_deployment_counts_replicas_only_where_the_user_does(spec: dict[str, Any], replicas: int | None) -> None:
    assert deployment(**spec)["spec"].get("replicas") == replicas


@pytest.mark.parametrize(
    ("spec", "surge", "unavailable"),
    [
        ({"device": "cuda"}, 0, 1),
        ({"device": "cpu"}, 1, 0),
        ({"device": "cuda", "rollout": {"maxSurge": 2}}, 2, 0),
        ({"device": "cpu", "rollout": {"maxSurge": 0}}, 0, 1),
    ],
)
def test_a_rollout_has_spare_or_missing_replicas_but_never_both(spec: dict[str, Any], surge: int, unavailable: int) -> None:
    assert deployment(**spec)["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": surge, "maxUnavailable": unavailable}


def test_a_pod_outlives_its_drain() -> None:
    spec = pod(requestTimeoutSeconds=90, drainSeconds=100)
    (server,) = spec["containers"]
    lag = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert environment(server)["DRAIN_SECONDS"] == "100.0"
    assert spec["terminationGracePeriodSeconds"] == lag + 100 + 5


def test_probes_use_the_internal_port_and_there_is_no_startup_probe() -> None:
    (server,) = pod()["containers"]
    assert server["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "metrics"}
    assert server["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert "startupProbe" not in server


def test_every_container_leaves_word_of_its_end() -> None:
    for container in containers(pod()):
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert environment(container)["TERMINATION_LOG"] == container["terminationMessagePath"]


def test_the_server_is_offline_and_never_falls_back_to_the_cpu() -> None:
    (server,) = pod()["containers"]
    assert environment(server)["HF_HUB_OFFLINE"] == "1"
    assert environment(server)["DEVICE_FALLBACK"] == "false"


def test_the_token_reaches_the_download_alone() -> None:
    spec = pod(model={"tokenSecret": "hub-token"})
    (download,), (server,) = spec["initContainers"], spec["containers"]
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub-token", "key": "token"}}} in download["env"]
    assert "hub-token" not in json.dumps(server)


def test_the_api_keys_reach_the_server_alone_as_a_file_that_follows_the_secret() -> None:
    spec = pod(apiKeysSecret="team-keys")
    (download,), (server,) = spec["initContainers"], spec["containers"]
    (volume,) = [each for each in spec["volumes"] if "secret" in each]
    assert volume["secret"] == {"secretName": "team-keys", "items": [{"key": "keys", "path": "keys"}], "optional": True}
    (mount,) = [each for each in server["volumeMounts"] if each["name"] == volume["name"]]
    assert mount["readOnly"] is True
    assert "subPath" not in mount
    assert environment(server)["API_KEYS_FILE"] == f"{mount['mountPath']}/keys"
    assert "team-keys" not in json.dumps(download)
    assert "API_KEYS_FILE" not in json.dumps(pod())


def test_a_server_whose_keys_are_missing_does_not_open_and_names_the_secret(tmp_path: Path) -> None:
    """As in a pod whose optional Secret is not there; the termination message is what the status tells."""
    (server,) = pod(device="cpu", apiKeysSecret="team-keys")["containers"]
    log = tmp_path / "termination"
    variables = {**environment(server), "TERMINATION_LOG": str(log)}
    ended = subprocess.run([sys.executable, *server["command"][1:]], env=variables, check=False, capture_output=True, timeout=60)
    assert ended.returncode == 2
    assert "team-keys" in json.loads(log.read_text())["hint"]


def test_a_model_of_the_hub_is_downloaded_by_the_server_image() -> None:
    (download,) = pod(model={"source": f"hf://owner/model@{COMMIT}"}, resources={"limits": {"ephemeral-storage": "1Ki"}})["initContainers"]
    assert download["image"] == PLATFORM.server_image
    assert download["command"] == ["python", "-m", "millrace_server.download"]
    assert download["args"] == ["--repo=owner/model", f"--revision={COMMIT}", "--to=/millrace/model", "--max-bytes=1024"]


def test_a_model_of_an_image_is_copied_by_that_image() -> None:
    (copy,) = pod(model={"source": "oci://host:5000/demo:latest#/files"})["initContainers"]
    assert copy["image"] == "host:5000/demo:latest"
    assert [*copy["command"], *copy["args"]] == ["cp", "-R", "--", "/files/.", "/millrace/model/"]


def test_a_model_of_a_claim_is_mounted_read_only_and_needs_no_step() -> None:
    spec = pod(model={"source": "pvc://shelf/house/v3"})
    (server,) = spec["containers"]
    assert spec["initContainers"] == []
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "shelf", "readOnly": True}} in spec["volumes"]
    assert {"name": "model", "mountPath": "/millrace/model", "readOnly": True} in server["volumeMounts"]
    assert environment(server)["MODEL_PATH"] == "/millrace/model/house/v3"


@pytest.mark.parametrize(
    ("source", "revision"),
    [
        ("hf://owner/model", None),
        ("hf://owner/model@main", None),
        (f"hf://owner/model@{COMMIT}", COMMIT),
        ("oci://image:v1#/model", None),
        (f"oci://image@{DIGEST}#/model", DIGEST),
        ("pvc://claim", None),
    ],
)
def test_only_a_revision_that_cannot_move_is_stated(source: str, revision: str | None) -> None:
    parsed = parse_source(source)
    assert isinstance(parsed, HubSource | ClaimSource | ImageSource)
    assert server_settings(service().spec, parsed).model_revision == revision


def test_a_gpu_is_asked_for_once_and_its_taint_is_tolerated() -> None:
    spec = pod(device="cuda", accelerators={"resource": "nvidia.com/mig-1g.10gb"})
    (download,), (server,) = spec["initContainers"], spec["containers"]
    assert server["resources"]["limits"] == {"nvidia.com/mig-1g.10gb": "1"}
    assert download["resources"]["limits"] == {}
    assert spec["tolerations"] == [{"key": "nvidia.com/mig-1g.10gb", "operator": "Exists", "effect": "NoSchedule"}]


def test_affinity_reaches_the_pod_word_for_word() -> None:
    zone = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a", "b"]}
    wanted = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [zone]}]},
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "preference": {"matchExpressions": [zone]}}],
        },
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "noisy"}}}
            ]
        },
    }
    assert pod(affinity=wanted)["affinity"] == wanted


def test_no_affinity_reaches_into_other_namespaces_or_names_a_node() -> None:
    term = {"labelSelector": {}, "topologyKey": "zone", "namespaces": ["kube-system"], "namespaceSelector": {}}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    (reached,) = pod(affinity={"podAffinity": {required: [term]}})["affinity"]["podAffinity"][required]
    assert reached == {"labelSelector": {}, "topologyKey": "zone"}


def test_replicas_are_spread_by_their_own_labels_and_each_revision_by_itself() -> None:
    (constraint,) = pod(topologySpreadConstraints=[{"topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}])[
        "topologySpreadConstraints"
    ]
    assert constraint == {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector_labels("chat")},
        "matchLabelKeys": ["pod-template-hash"],
    }


@pytest.mark.parametrize(
    ("spec", "field", "value"),
    [
        ({"nodeSelector": {"disk": "ssd"}}, "nodeSelector", {"disk": "ssd"}),
        ({"priorityClassName": "high"}, "priorityClassName", "high"),
        ({"runtimeClassName": "nvidia"}, "runtimeClassName", "nvidia"),
        ({"imagePullSecrets": [{"name": "registry"}]}, "imagePullSecrets", [{"name": "registry"}]),
    ],
)
def test_a_field_of_the_pod_is_there_when_it_is_asked_for_and_only_then(spec: dict[str, Any], field: str, value: object) -> None:
    assert pod(**spec)[field] == value
    assert field not in pod()


def test_annotations_reach_the_pods_and_the_clients_service() -> None:
    everything = wish(podAnnotations={"a": "b"}, service={"annotations": {"c": "d"}, "type": "NodePort", "nodePort": 30080})
    assert everything["Deployment/chat"]["spec"]["template"]["metadata"]["annotations"] == {"a": "b"}
    assert everything["Service/chat"]["metadata"]["annotations"] == {"c": "d"}
    assert everything["Service/chat"]["spec"]["type"] == "NodePort"
    assert everything["Service/chat"]["spec"]["ports"][0]["nodePort"] == 30080


def test_a_cpu_service_asks_for_no_gpu() -> None:
    assert "nvidia.com" not in json.dumps(deployment(device="cpu"))


def test_the_disk_limit_bounds_the_model() -> None:
    volumes = pod(resources={"limits": {"ephemeral-storage": "30Gi"}})["volumes"]
    assert {"name": "model", "emptyDir": {"sizeLimit": "30Gi"}} in volumes


def test_clients_never_reach_the_internal_port() -> None:
    (port,) = wish()["Service/chat"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, "http")


def test_the_metrics_service_finds_replicas_that_still_load() -> None:
    spec = wish()["Service/chat-metrics"]["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"], spec["ports"][0]["port"]) == ("None", True, 9090)


def test_prometheus_is_led_to_the_internal_port_and_to_no_other() -> None:
    everything = wish(cache=REDIS, monitoring={"labels": {"release": "prometheus"}})
    monitor = everything["ServiceMonitor/chat"]
    assert monitor["metadata"]["labels"] == {**child_labels("chat"), "release": "prometheus"}
    selected = monitor["spec"]["selector"]["matchLabels"].items()
    services = [child for child in everything.values() if child["kind"] == "Service" and selected <= child["metadata"]["labels"].items()]
    assert [service["metadata"]["name"] for service in services] == ["chat-metrics"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in services[0]["spec"]["ports"]}


def test_no_service_monitor_is_made_where_nobody_wants_it() -> None:
    assert "ServiceMonitor/chat" not in wish(monitoring={"enabled": False})


def test_one_replica_at_a_time_may_be_evicted_and_a_broken_one_always() -> None:
    budget = wish()["PodDisruptionBudget/chat"]["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    template = wish(cache=REDIS)["Deployment/chat-redis"]["spec"]["template"]["metadata"]["labels"]
    assert not budget["selector"]["matchLabels"].items() <= template.items()


def test_services_select_the_pods_of_their_own_deployment() -> None:
    everything = wish()
    labels = everything["Deployment/chat"]["spec"]["template"]["metadata"]["labels"]
    for name in ("Service/chat", "Service/chat-metrics"):
        assert everything[name]["spec"]["selector"].items() <= labels.items()
    for name in ("Deployment/chat", "PodDisruptionBudget/chat"):
        assert everything[name]["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_ports_have_names_that_services_point_to() -> None:
    (server,) = pod()["containers"]
    assert {port["name"]: port["containerPort"] for port in server["ports"]} == {"http": 8000, "metrics": 9090}


def test_labels_of_pods_cannot_take_over_the_selector() -> None:
    template = deployment(podLabels={"app.kubernetes.io/name": "other", "team": "search"})["spec"]["template"]
    assert template["metadata"]["labels"] == {**child_labels("chat"), "team": "search"}


def test_every_mounted_volume_exists_and_every_volume_is_mounted() -> None:
    spec = pod()
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in containers(spec):
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_label_values_are_ones_that_kubernetes_accepts() -> None:
    for value in child_labels("a" * MAX_NAME_LENGTH).values():
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", value)


def test_no_mount_hides_a_model_that_lies_at_the_root_of_its_image() -> None:
    (copy,) = pod(model={"source": "oci://host:5000/demo:latest#/model"})["initContainers"]
    assert not any("/model".startswith(mount["mountPath"]) for mount in copy["volumeMounts"])
