"""Millrace on the test cluster: its images there, and both ways to install it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster import images, install_lines
from cluster.provider import Provider
from demo.image import model_image
from kube import Kube, Manifest, wait_for
from redis_image import redis_image

NAMESPACE = "millrace-system"
OPERATOR = "millrace-operator"
REPLICAS = 2
"""The chart's own: the leader, and one that waits."""
SHORT_DURATIONS = {
    "MILLRACE_SCALE_DOWN_WINDOW_SECONDS": "20",
    "MILLRACE_SCALE_DOWN_SECONDS": "5",
    "MILLRACE_LOAD_INTERVAL_SECONDS": "2",
}
"""The windows of the autoscaler, so that a test sees a whole cycle."""


@dataclass(frozen=True)
class References:
    """The images, as pods name them."""

    operator: str
    server: str
    model: str
    redis: str | None = None
    """None: the chart's own."""

    @classmethod
    def built(cls, provider: Provider) -> "References":
        """From this checkout, with the demo model, and loaded into the cluster."""
        return cls(
            operator=provider.load(images.build("operator")),
            server=provider.load(images.build("server")),
            model=provider.load(model_image()),
            redis=provider.load(redis_image()),
        )


@dataclass(frozen=True)
class Installation:
    """Millrace as this session installs it."""

    kube: Kube
    references: References

    def by_chart(self, environment: Mapping[str, str] = SHORT_DURATIONS, *, values: Sequence[str] = ()) -> None:
        """helm upgrade --install with these settings of the operator, and `values` such as `--set=replicas=1`, until it leads."""
        line = install_lines.by_chart(operator=self.references.operator, server=self.references.server)
        strings = {f"environment.{name}": value for name, value in environment.items()}
        if self.references.redis is not None:
            strings["redisImage.repository"], _, strings["redisImage.tag"] = self.references.redis.rpartition(":")
        settings = shlex.join([*(f"--set-string={name}={value}" for name, value in strings.items()), *values])
        self.kube.shell(f"{line} {settings} --wait --timeout=3m")
        self.wait_leading()

    def by_manifests(self) -> None:
        """kubectl apply of manifests/install.yaml, until the operator leads."""
        self.kube.shell(install_lines.by_manifests(operator=self.references.operator, server=self.references.server))
        self.kube.kubectl("rollout", "status", f"deployment/{OPERATOR}", "-n", NAMESPACE, "--timeout=3m")
        self.wait_leading()

    def wait_leading(self) -> None:
        """Until one of the running operators holds the Lease."""

        wait_for("an operator leads", lambda: leader(self.kube) is not None, seconds=60)

    def scale_operator(self, replicas: int) -> None:
        """0: gone, pods and all. REPLICAS: as it is for other tests."""
        self.kube.kubectl("scale", f"deployment/{OPERATOR}", "-n", NAMESPACE, f"--replicas={replicas}")
        if replicas:
            self.kube.kubectl("rollout", "status", f"deployment/{OPERATOR}", "-n", NAMESPACE, "--timeout=2m")
            self.wait_leading()
        else:
            wait_for("no operator runs", lambda: not self.kube.get("pods", "-n", NAMESPACE)["items"], seconds=60)


def operator_pods(kube: Kube) -> list[Manifest]:
    return [pod for pod in kube.get("pods", "-n", NAMESPACE)["items"] if "deletionTimestamp" not in pod["metadata"]]


def leader(kube: Kube) -> str | None:
    """The pod that holds the Lease; None while none of those that run does."""
    if not kube.exists("lease", OPERATOR, "-n", NAMESPACE):
        return None
    holder = kube.get("lease", OPERATOR, "-n", NAMESPACE)["spec"].get("holderIdentity", "")
    names: list[str] = [pod["metadata"]["name"] for pod in operator_pods(kube)]
    return next((name for name in names if holder.startswith(name)), None)
