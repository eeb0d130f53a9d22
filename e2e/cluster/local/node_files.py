"""Every configuration file of a node, as text. Pure."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.control_plane import NODE_GRACE_SECONDS, Place
from cluster.local.slot import NodeNames

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
DNS_ADDRESS = "10.96.0.10"


@dataclass(frozen=True)
class NodeFolder:
    """Where a node keeps what it writes, in the state of the checkout."""

    path: Path

    @property
    def kubelet(self) -> Path:
        """Becomes /var/lib/kubelet."""
        return self.path / "kubelet"

    @property
    def pod_logs(self) -> Path:
        """Becomes /var/log/pods."""
        return self.path / "pod-logs"

    @property
    def etc(self) -> Path:
        """The files of this module."""
        return self.path / "etc"

    @property
    def logs(self) -> Path:
        """What the node's own processes say."""
        return self.path / "logs"


def containerd(node: NodeNames, *, etc: Path, plugins: Path, pause_image: str, serves_kubelet: bool = True) -> str:
    """containerd's configuration; with `serves_kubelet` off it only gives access to its store."""
    cri = "io.containerd.grpc.v1.cri"
    disabled = "" if serves_kubelet else f'"{cri}"'
    return f"""version = 2
root = "{node.containerd_root}"
state = "/run/containerd"
disabled_plugins = [{disabled}]

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."{cri}"]
  sandbox_image = "{pause_image}"
  restrict_oom_score_adj = true
  [plugins."{cri}".cni]
    bin_dir = "{plugins}"
    conf_dir = "{etc / "cni"}"
  [plugins."{cri}".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    discard_unpacked_layers = true
  [plugins."{cri}".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."{cri}".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."{cri}".registry]
    config_path = "{etc / "registries"}"
"""


def registry_hosts(registry: str) -> str:
    """Where containerd finds the registry, whatever pods call it."""
    return f'server = "http://{registry}"\n[host."http://{registry}"]\n  capabilities = ["pull", "resolve"]\n'


def cni(node: NodeNames, *, addresses: Path) -> str:
    """Pods hang on a bridge of the node. Nothing is masqueraded: every node has a route to the pods of the others."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": node.pod_range}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(addresses),
        },
    }
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}, indent=2)


def kubelet(node: NodeNames, *, ca: Path, certificate: Path, key: Path, resolv_conf: Path) -> str:
    """The kubelet's configuration."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": node.address,
            "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": str(ca)}},
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{node.cgroup}",
            "clusterDNS": [DNS_ADDRESS],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "enforceNodeAllocatable": ["pods"],
            # The disk is the developer's, and may be as full as they like.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "failCgroupV1": False,
            "failSwapOn": False,
            # Renewed after a quarter of it: eight renewals must fail until the node is given up.
            "nodeLeaseDurationSeconds": NODE_GRACE_SECONDS // 2,
            "resolvConf": str(resolv_conf),
            "serializeImagePulls": False,
        },
        sort_keys=False,
    )


def kube_proxy(node: NodeNames, place: Place, *, kubeconfig: Path) -> str:
    """kube-proxy's configuration; limits of connection tracking belong to the whole machine and stay as they are."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "bindAddress": "0.0.0.0",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "clusterCIDR": place.pod_range,
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "hostnameOverride": node.name,
            "mode": "iptables",
        },
        sort_keys=False,
    )
