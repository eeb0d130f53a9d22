"""Both ways to install give the same operator: small, restricted, and able to serve."""

from collections.abc import Callable

from cluster.provider import CHECKOUT
from demo_service import Service
from installation import NAMESPACE, OPERATOR, REPLICAS, Installation, leader, operator_pods
from kube import Kube, wait_for

RSS_LIMIT_KB = 90_000


def test_the_chart_installs_an_operator_that_leads_and_stays_small(kube: Kube, installation: Installation) -> None:
    assert len(operator_pods(kube)) == REPLICAS
    name = leader(kube)
    assert name is not None
    status = kube.kubectl("exec", name, "-n", NAMESPACE, "--", "cat", "/proc/1/status")
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    print(f"operator RSS: {resident / 1000:.1f} MB")
    assert resident <= RSS_LIMIT_KB
    modules = kube.kubectl("exec", name, "-n", NAMESPACE, "--", "python", "-c", "import importlib.util as u; print(u.find_spec('torch'))")
    assert modules.strip() == "None"


def test_the_manifests_install_the_same(kube: Kube, installation: Installation, serve: Callable[..., Service]) -> None:
    kube.run("helm", "uninstall", "millrace", "-n", NAMESPACE, "--wait")
    assert kube.exists("crd", "inferenceservices.millrace.dev"), "an uninstall must not take the services with it"
    try:
        installation.by_manifests()
        service = serve()
        wait_for("the Deployment exists", lambda: kube.exists("deployment", service.name, "-n", service.namespace), seconds=15)
        service.wait_ready()
    finally:
        manifests = str(CHECKOUT / "manifests" / "install.yaml")
        kube.kubectl("delete", "-f", manifests, "-l", f"app.kubernetes.io/name={OPERATOR}", "--ignore-not-found", "--wait")
        installation.by_chart()
