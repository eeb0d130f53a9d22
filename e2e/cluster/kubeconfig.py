"""The provider `kubeconfig`: a cluster of the user's own, only when named on purpose; it is neither started nor stopped.

Tried against our own API server only, without a registry. To run it on yours:
`MILLRACE_PROVIDER=kubeconfig KUBECONFIG=… MILLRACE_CONTEXT=… REGISTRY=… make e2e`.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.packages import tool
from cluster.progress import step
from cluster.provider import NoCluster, forget, record
from cluster.push import content_tag, push_from_local_store


@dataclass(frozen=True)
class Kubeconfig:
    """One context of one kubeconfig file, and the registry that its nodes pull from."""

    source: Path
    context: str
    registry: str | None
    folder: Path

    name = "kubeconfig"

    @classmethod
    def named_on_purpose(cls, environment: Mapping[str, str], folder: Path) -> "Kubeconfig":
        """From KUBECONFIG (one file), MILLRACE_CONTEXT and REGISTRY; refused when the context is not said or not in the file."""
        file, context = environment.get("KUBECONFIG"), environment.get("MILLRACE_CONTEXT")
        if not file or not context:
            raise NoCluster(
                "the provider `kubeconfig` needs KUBECONFIG (one file) and MILLRACE_CONTEXT: an unnamed cluster is never touched"
            )
        source = Path(file)
        if not source.is_file():
            raise NoCluster(f"KUBECONFIG={file} is not a file")
        known = [each["name"] for each in (yaml.safe_load(source.read_text()) or {}).get("contexts") or []]
        if context not in known:
            raise NoCluster(f"MILLRACE_CONTEXT={context} is not in {source}; it has {', '.join(known) or 'no contexts'}")
        return cls(source.resolve(), context, environment.get("REGISTRY"), folder.resolve())

    @classmethod
    def adopted(cls, environment: Mapping[str, str], folder: Path) -> "Kubeconfig":
        """The one that an earlier `up` copied into `folder`; REGISTRY still comes from the environment."""
        copy = folder.resolve() / "kubeconfig"
        known = yaml.safe_load(copy.read_text()) if copy.exists() else None
        return cls(copy, (known or {}).get("current-context", ""), environment.get("REGISTRY"), folder.resolve())

    def up(self) -> Path:
        """Copies that one context, and nothing else, to where the other providers write their kubeconfig."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kubeconfig = self.folder / "kubeconfig"
        only = self._kubectl("config", "view", "--minify", "--flatten", "--raw")
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(only)
        record(self.folder, self.name)
        self._kubectl("get", "nodes")
        return kubeconfig

    def down(self) -> None:
        """Forgets the cluster, which is not ours to stop."""
        (self.folder / "kubeconfig").unlink(missing_ok=True)
        forget(self.folder)

    def load(self, image: str) -> str:
        """Pushes to REGISTRY."""
        if not self.registry:
            raise NoCluster(
                "images must be pushed to a registry that the cluster's nodes pull from: set REGISTRY, such as registry.example/team"
            )
        name, tag = content_tag(image)
        target = f"{self.registry}/{name}:{tag}"
        with step(f"push {target}"):
            push_from_local_store(image, target, plain_http=False)
        return target

    def node_address(self) -> str:
        """The first node's external address, or its internal one."""
        nodes = json.loads(self._kubectl("get", "nodes", "-o=json"))["items"]
        addresses = {each["type"]: each["address"] for each in nodes[0]["status"]["addresses"]}
        return str(addresses.get("ExternalIP") or addresses["InternalIP"])

    def freeze_node(self, name: str) -> None:
        """Always refused."""
        raise NoCluster(f"node {name} is stopped in clusters of our own only: use the provider `local` or `kind`")

    def thaw_node(self, name: str) -> None:
        """Nothing was frozen."""

    def status(self) -> str:
        """One line on what runs."""
        return f"context {self.context} of {self.source}"

    def _kubectl(self, *arguments: str) -> str:
        command = [str(tool("kubectl")), f"--kubeconfig={self.source}", f"--context={self.context}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoCluster(f"context {self.context} of {self.source}: {done.stderr.strip()}")
        return done.stdout
