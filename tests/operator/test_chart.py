"""The chart: what it renders, refuses and grants, and that a real API server takes it."""

import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from cluster import versions
from cluster.binaries import module_folder
from cluster.control_plane import ControlPlane
from cluster.packages import tool
from millrace_operator import generate
from millrace_operator.api import InferenceServiceSpec
from millrace_operator.chart import ChartValues
from millrace_operator.desired import CHILD_KINDS
from millrace_operator.manifest import Manifest
from millrace_operator.names import GROUP, LEASE, OPERATOR_LABELS, PLURAL
from millrace_operator.release import RELEASE
from millrace_operator.settings import OperatorSettings
from operators import FAST, Process, eventually
from services import CHECKOUT

CHART = CHECKOUT / "charts/millrace"
DIGEST = "sha256:" + "0" * 64


def render(*values: str) -> list[Manifest]:
    text = generate.render(CHART, helm=str(tool("helm")), namespace="millrace-system", values=values)
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def of_kind(kind: str, manifests: Sequence[Manifest]) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def operator(*values: str) -> Manifest:
    """The operator's pod."""
    (deployment,) = of_kind("Deployment", render(*values))
    return dict(deployment["spec"]["template"]["spec"])


def environment(pod: Manifest) -> dict[str, str]:
    (container,) = pod["containers"]
    return {variable["name"]: variable.get("value", "from the pod") for variable in container["env"]}


def grants(role: Manifest) -> dict[tuple[str, str], set[str]]:
    """(API group, resource) → verbs."""
    return {
        (group, resource): set(rule["verbs"]) for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"]
    }


def test_the_values_file_states_every_value_and_its_default() -> None:
    stated = yaml.safe_load((CHART / "values.yaml").read_text())
    assert ChartValues.model_validate(stated).model_dump(by_alias=True) == stated == ChartValues().model_dump(by_alias=True)


def test_versions_agree_everywhere() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"], RELEASE) == (version, version, version)
    (container,) = operator()["containers"]
    assert container["image"] == f"millrace/operator:{version}"
    assert environment(operator())["MILLRACE_SERVER_IMAGE"] == f"millrace/server:{version}"


def test_the_chart_and_the_operator_agree_on_the_image_of_redis() -> None:
    assert environment(operator())["MILLRACE_REDIS_IMAGE"] == OperatorSettings.model_fields["redis_image"].default
    pinned = environment(operator("redisImage.repository=host:5000/redis", f"redisImage.digest={DIGEST}"))
    assert pinned["MILLRACE_REDIS_IMAGE"] == f"host:5000/redis@{DIGEST}"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("imagee.tag=v1", "imagee"),
        ("image.tag=a b", "tag"),
        ("replicas=many", "replicas"),
        ("image.digest=latest", "digest"),
        ("watchNamespaces={a/b}", "watchNamespaces"),
        ("environment.HF_TOKEN=x", "HF_TOKEN"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
    ],
)
def test_a_misspelt_or_impossible_value_is_refused_by_name(value: str, says: str) -> None:
    with pytest.raises(generate.CannotGenerate, match=says):
        render(value)


def test_a_digest_goes_before_the_tag() -> None:
    (container,) = operator("image.repository=host:5000/operator", f"image.digest={DIGEST}", "image.tag=v9")["containers"]
    assert container["image"] == f"host:5000/operator@{DIGEST}"


def test_the_operator_understands_every_variable_that_the_chart_sets() -> None:
    given = environment(operator("watchNamespaces={a,b}", "environment.MILLRACE_LOG_LEVEL=DEBUG", "serverImage.pullPolicy=Never"))
    assert set(given) <= {field.alias for field in OperatorSettings.model_fields.values()}
    settings = OperatorSettings.from_environment(given)
    assert settings.namespaces == ("a", "b")
    assert settings.server_image_pull_policy == "Never"
    assert settings.log_level == "DEBUG"


def test_the_operator_is_labelled_as_the_network_policies_of_its_services_know_it() -> None:
    for everything in (render(), render("watchNamespaces={a}")):
        (deployment,) = of_kind("Deployment", everything)
        assert OPERATOR_LABELS.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_the_chart_probes_the_port_that_the_operator_listens_on() -> None:
    (container,) = operator()["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == OperatorSettings.model_fields["port"].default
    assert {container[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")} == {port["name"]}


def test_the_operator_may_do_what_a_pass_does_and_nothing_else() -> None:
    (role,) = [role for role in of_kind("ClusterRole", render()) if role["metadata"]["name"] == "millrace-operator"]
    write = {"get", "list", "create", "patch", "delete"}
    needed = {(kind.api_version.rpartition("/")[0], kind.plural): write | (set() if kind.optional else {"watch"}) for kind in CHILD_KINDS}
    needed |= {
        (GROUP, PLURAL): {"get", "list", "watch"},
        (GROUP, f"{PLURAL}/status"): {"update"},
        ("apps", "deployments/scale"): {"patch"},
        ("", "pods"): {"list", "watch", "patch"},
        ("", "secrets"): {"create"},
        ("autoscaling", "horizontalpodautoscalers"): {"list"},
        ("events.k8s.io", "events"): {"create", "patch"},
    }
    assert grants(role) == needed


def test_a_namespaced_installation_has_no_cluster_wide_rights() -> None:
    everything = render("watchNamespaces={team-a,team-b}", "crds.install=false")
    assert (
        of_kind("ClusterRole", everything)
        == of_kind("ClusterRoleBinding", everything)
        == of_kind("CustomResourceDefinition", everything)
        == []
    )
    (anywhere,) = [role for role in of_kind("ClusterRole", render()) if role["metadata"]["name"] == "millrace-operator"]
    roles = {role["metadata"]["namespace"]: role["rules"] for role in of_kind("Role", everything)}
    (lease,) = of_kind("Role", render())
    assert roles == {"team-a": anywhere["rules"], "team-b": anywhere["rules"], "millrace-system": lease["rules"]}


def test_the_operator_may_hold_one_lease_of_its_own_namespace() -> None:
    (role,) = of_kind("Role", render())
    leases = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"]}
    assert role["rules"] == [{**leases, "resourceNames": [LEASE], "verbs": ["get", "update"]}, {**leases, "verbs": ["create"]}]


def test_every_binding_points_to_a_role_and_to_the_operators_account() -> None:
    for everything in (render(), render("watchNamespaces={team-a}")):
        (account,) = of_kind("ServiceAccount", everything)
        roles = {(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in everything}
        for binding in [*of_kind("RoleBinding", everything), *of_kind("ClusterRoleBinding", everything)]:
            reference = binding["roleRef"]
            namespace = binding["metadata"].get("namespace") if reference["kind"] == "Role" else None
            assert (reference["kind"], namespace, reference["name"]) in roles
            (subject,) = binding["subjects"]
            assert (subject["name"], subject["namespace"]) == (account["metadata"]["name"], account["metadata"]["namespace"])
        assert operator()["serviceAccountName"] == account["metadata"]["name"]


def test_uninstalling_the_chart_keeps_the_crd() -> None:
    (definition,) = of_kind("CustomResourceDefinition", render())
    assert definition["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_every_option_of_the_pod_renders() -> None:
    pod = operator(
        "imagePullSecrets[0].name=registry",
        "nodeSelector.disk=ssd",
        "tolerations[0].operator=Exists",
        "priorityClassName=high",
    )
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"] == {"disk": "ssd"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "high"


MONITORED = (
    "monitoring.operator.enabled=true",
    "monitoring.alerts.enabled=true",
    "monitoring.dashboards.enabled=true",
    "monitoring.labels.release=prometheus",
)


def test_nothing_that_a_bare_cluster_does_not_know_is_rendered_by_default() -> None:
    assert {"PodMonitor", "PrometheusRule", "ConfigMap"}.isdisjoint(manifest["kind"] for manifest in render())
    for value, kind in zip(MONITORED[:3], ("PodMonitor", "PrometheusRule", "ConfigMap"), strict=True):
        found = {manifest["kind"] for manifest in render(value)}
        assert found & {"PodMonitor", "PrometheusRule", "ConfigMap"} == {kind}


def test_prometheus_is_led_to_the_port_and_the_pods_of_the_operator() -> None:
    everything = render(*MONITORED)
    (monitor,) = of_kind("PodMonitor", everything)
    (deployment,) = of_kind("Deployment", everything)
    assert monitor["metadata"]["labels"].items() >= {"release": "prometheus", **OPERATOR_LABELS}.items()
    assert monitor["spec"]["selector"] == deployment["spec"]["selector"]
    (container,) = operator()["containers"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert [endpoint["port"]] == [port["name"] for port in container["ports"]]
    assert endpoint["honorLabels"], "else the namespace of a service's series would be the operator's"


def test_alerts_and_dashboard_are_the_chart_s_files() -> None:
    everything = render(*MONITORED)
    (rule,) = of_kind("PrometheusRule", everything)
    assert rule["spec"] == yaml.safe_load((CHART / "rules/millrace.yaml").read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    (dashboards,) = of_kind("ConfigMap", everything)
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboards["data"] == {file.name: file.read_text().rstrip() for file in (CHART / "dashboards").iterdir()}


def test_the_prometheus_operator_s_definitions_take_the_rules_and_the_monitor(apiserver: ControlPlane, tmp_path: Path) -> None:
    folder = (
        module_folder("github.com/prometheus-operator/prometheus-operator", versions.PROMETHEUS_OPERATOR)
        / "example/prometheus-operator-crd"
    )
    definitions = [f"--filename={folder}/monitoring.coreos.com_{plural}.yaml" for plural in ("podmonitors", "prometheusrules")]
    rendered = tmp_path / "monitoring.yaml"
    ours = generate.yaml_text(*(each for each in render(*MONITORED) if each["kind"] in ("PodMonitor", "PrometheusRule")))
    rendered.write_text(ours.replace("namespace: millrace-system", "namespace: default"))
    try:
        apiserver.kubectl("apply", "--server-side", *definitions)
        apiserver.kubectl("wait", "--for=condition=Established", *definitions, "--timeout=20s")
        taken = apiserver.kubectl("apply", "--validate=strict", "--dry-run=server", "-f", str(rendered))
        assert len(taken.splitlines()) == 2
    finally:
        apiserver.kubectl("delete", "--ignore-not-found", *definitions)


def test_helm_installs_into_one_namespace_and_leaves_nothing_there(apiserver: ControlPlane) -> None:
    def helm(*words: str) -> str:
        command = [str(tool("helm")), f"--kubeconfig={apiserver.kubeconfig}", "--namespace=chart", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    notes = helm("install", "millrace", str(CHART), "--create-namespace", "--set=watchNamespaces={chart}", "--set=crds.install=false")
    assert "serves InferenceServices in chart" in notes
    assert "kubectl -n chart rollout status deployment/millrace-operator" in notes
    ours = ("deployments,serviceaccounts,roles,rolebindings", "--namespace=chart", "--selector=app.kubernetes.io/name=millrace-operator")
    assert len(apiserver.kubectl("get", *ours, "--output=name").split()) == 6
    helm("uninstall", "millrace")
    assert apiserver.kubectl("get", *ours, "--output=name") == ""


def test_the_notes_show_fields_that_exist() -> None:
    notes = (CHART / "templates/NOTES.txt").read_text()
    (body,) = [part.split("YAML")[0] for part in notes.split("<<'YAML'")[1:]]
    InferenceServiceSpec.model_validate(yaml.safe_load(body)["spec"])


def test_the_plain_manifests_are_accepted_in_a_restricted_namespace(apiserver: ControlPlane) -> None:
    install = CHECKOUT / "manifests/install.yaml"
    for path in ("--dry-run=none", "--dry-run=server"):
        apiserver.kubectl("apply", "--validate=strict", path, "-f", str(install))
    accounts = apiserver.kubectl("-n", generate.INSTALL_NAMESPACE, "get", "serviceaccount", "millrace-operator", "-o", "name")
    assert accounts.strip() == "serviceaccount/millrace-operator"


@pytest.fixture
def installed(apiserver: ControlPlane, tmp_path: Path) -> Iterator[Process]:
    """An operator with the rights that the plain manifests give it, and no others."""
    apiserver.kubectl("apply", "-f", str(CHECKOUT / "manifests/install.yaml"))
    apiserver.kubectl("wait", "--for=condition=Established", f"crd/{PLURAL}.{GROUP}", "--timeout=20s")
    account = f"system:serviceaccount:{generate.INSTALL_NAMESPACE}:millrace-operator"
    kubeconfig = apiserver.kubeconfig_for(account, "system:serviceaccounts", "system:authenticated")
    environment = {**FAST, "KUBECONFIG": str(kubeconfig), "MILLRACE_LEASE_NAMESPACE": generate.INSTALL_NAMESPACE}
    process = Process(environment, tmp_path / "operator.log")
    yield process
    process.process.kill()
    process.process.wait()


def test_the_rights_are_enough_to_take_renew_and_release_the_lease(apiserver: ControlPlane, installed: Process) -> None:
    def lease(field: str) -> str:
        return apiserver.kubectl("-n", generate.INSTALL_NAMESPACE, "get", "lease", LEASE, f"-o=jsonpath={{.{field}}}")

    installed.wait_until_it_leads()
    taken = lease("metadata.resourceVersion")
    eventually(lambda: lease("metadata.resourceVersion") != taken, "a renewal")
    # Not until its queue is empty: it watches every namespace, and what other tests left there may never come to rest.
    eventually(lambda: installed.metric("millrace_last_full_list_timestamp_seconds") > 0, "a full list")
    assert installed.stop() == 0
    assert lease("spec.holderIdentity") == ""
    assert not installed.said("Forbidden")


def can_i(apiserver: ControlPlane, *question: str) -> bool:
    """Asked as the operator's account."""
    user = f"--as=system:serviceaccount:{generate.INSTALL_NAMESPACE}:millrace-operator"
    command = [str(tool("kubectl")), f"--kubeconfig={apiserver.kubeconfig}", "auth", "can-i", *question, user]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "yes"


def test_the_api_server_grants_a_pass_but_no_look_at_a_secret_and_no_spec(apiserver: ControlPlane) -> None:
    apiserver.kubectl("apply", "-f", str(CHECKOUT / "manifests/install.yaml"))
    assert can_i(apiserver, "patch", "deployments.apps", "-n", "default")
    assert can_i(apiserver, "update", f"{PLURAL}.{GROUP}", "--subresource=status", "-n", "default")
    assert can_i(apiserver, "update", f"leases.coordination.k8s.io/{LEASE}", "-n", generate.INSTALL_NAMESPACE)
    assert not can_i(apiserver, "update", "leases.coordination.k8s.io/of-somebody-else", "-n", generate.INSTALL_NAMESPACE)
    assert not can_i(apiserver, "update", f"leases.coordination.k8s.io/{LEASE}", "-n", "default")
    for verb in ("get", "list", "watch", "update", "patch", "delete"):
        assert not can_i(apiserver, verb, "secrets", "-n", "default")
    for verb in ("create", "update", "patch", "delete"):
        assert not can_i(apiserver, verb, f"{PLURAL}.{GROUP}", "-n", "default")
    assert not can_i(apiserver, "create", "pods", "--subresource=exec", "-n", "default")
