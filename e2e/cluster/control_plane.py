"""etcd, kube-apiserver and kube-controller-manager as child processes: a real API server without nodes, root or namespaces.

`with ControlPlane() as api:` takes seconds; everything ends with this process, however it ends. The `local` provider starts the same
processes, with a scheduler, on its own address.
"""

import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from cluster.packages import tool
from cluster.pki import Authority, Certificate
from cluster.process import Child, start, wait_until

READY_SECONDS = 60
NODE_GRACE_SECONDS = 24
"""A node that is silent for so long is NotReady (Kubernetes' default: 50)."""
GIVEN_UP_SECONDS = 30
"""After so long its pods are replaced elsewhere (Kubernetes' default: 300)."""
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
    ],
}
"""What installed programs asked of the API server, and nothing of what Kubernetes' own controllers ask it all the time."""


@dataclass(frozen=True)
class Place:
    """Where the control plane listens, and the ranges that the cluster hands out."""

    address: str
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    controller_manager_port: int
    scheduler_port: int
    service_range: str = "10.96.0.0/16"
    pod_range: str = "10.244.0.0/16"

    @property
    def url(self) -> str:
        """The API server's address, from wherever `address` can be reached."""
        return f"https://{self.address}:{self.api_port}"

    @property
    def is_loopback(self) -> bool:
        """Nothing else can reach it: the `kubernetes` Service then has no endpoints, for an endpoint must not be a loopback address."""
        return ipaddress.ip_address(self.address).is_loopback

    @property
    def first_service_address(self) -> str:
        """The address of the `kubernetes` Service."""
        return str(ipaddress.ip_network(self.service_range)[1])


def loopback() -> Place:
    """Free ports of 127.0.0.1."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
        api, etcd, etcd_peer, controller_manager, scheduler = [each.getsockname()[1] for each in sockets]
    return Place("127.0.0.1", api, etcd, etcd_peer, controller_manager, scheduler)


class ControlPlane:
    """The processes, their certificates and their kubeconfig, all in one folder.

    Without a folder it uses a temporary one and removes it at the end. `place` defaults to free ports of the loopback address.
    """

    def __init__(self, folder: Path | None = None, *, place: Place | None = None, with_scheduler: bool = False) -> None:
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="millrace-control-plane-"))
        self.place = place or loopback()
        self.with_scheduler = with_scheduler
        self.authority = Authority(self.folder / "pki")
        self.admin = self.authority.issue("admin", user="millrace-admin", groups=("system:masters",))
        self.children: dict[str, Child] = {}

    @property
    def url(self) -> str:
        """The API server's address."""
        return self.place.url

    @property
    def ca(self) -> Path:
        """The authority that signed the API server's certificate."""
        return self.authority.certificate

    @property
    def certificate(self) -> Path:
        """The administrator's client certificate; `key` belongs to it."""
        return self.admin.certificate

    @property
    def key(self) -> Path:
        """The administrator's private key."""
        return self.admin.key

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        """Every request of a service account outside kube-system, a JSON object per line; a watch appears when it is answered."""
        return self.folder / "logs" / "audit.log"

    def kubeconfig_for(self, user: str, *groups: str) -> Path:
        """A kubeconfig of somebody with no rights but those that RBAC gives to `user` and `groups`."""
        identity = self.authority.issue(f"user-{user.replace(':', '-')}", user=user, groups=groups)
        return self.authority.kubeconfig(self.folder / f"kubeconfig-{user.replace(':', '-')}", url=self.url, identity=identity)

    def client(self) -> httpx.Client:
        """An HTTP client with the administrator's rights, for questions that need no library."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.certificate, self.key)
        return httpx.Client(base_url=self.url, verify=context, timeout=10)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What `kubectl …` prints, as administrator; raises CalledProcessError when it fails."""
        command = [str(tool("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout

    def start(self) -> None:
        """Starts everything and returns when objects can be created, default service accounts included."""
        self.authority.kubeconfig(self.kubeconfig, url=self.url, identity=self.admin)
        commands = self.commands()
        with self.client() as client:
            self._run("etcd", commands)
            self._run("kube-apiserver", commands)
            self._wait(client, "/readyz", "the API server is ready")
            # Only now: without the bootstrapped RBAC roles the others end at once.
            for name in [name for name in commands if name not in self.children]:
                self._run(name, commands)
            self._wait(client, "/api/v1/namespaces/default/serviceaccounts/default", "the controller manager works")

    def stop(self) -> None:
        """Ends every process, clients of etcd first, and removes the folder if it was a temporary one."""
        for child in reversed(self.children.values()):
            child.stop()
        self.children.clear()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def commands(self) -> dict[str, list[str]]:
        """Process → command line, in the order of starting."""
        commands = {
            "etcd": [str(tool("etcd")), *self._etcd_flags()],
            "kube-apiserver": [str(tool("kube-apiserver")), *self._apiserver_flags()],
            "kube-controller-manager": [str(tool("kube-controller-manager")), *self._controller_manager_flags()],
        }
        if self.with_scheduler:
            commands["kube-scheduler"] = [str(tool("kube-scheduler")), *self._scheduler_flags()]
        return commands

    def _run(self, name: str, commands: dict[str, list[str]]) -> None:
        self.children[name] = start(name, commands[name], log=self.folder / "logs" / f"{name}.log")

    def _wait(self, client: httpx.Client, path: str, what: str) -> None:
        wait_until(partial(_answers, client, path), what, seconds=READY_SECONDS, children=self.children.values())

    def _etcd_flags(self) -> list[str]:
        place = self.place
        # An etcd without client certificates is the API server without authorization, for every user of this machine.
        identity = self.authority.issue("etcd", user="etcd", hosts=("127.0.0.1", "localhost"))
        return [
            f"--data-dir={self.folder / 'etcd'}",
            "--name=millrace",
            f"--listen-client-urls=https://127.0.0.1:{place.etcd_port}",
            f"--advertise-client-urls=https://127.0.0.1:{place.etcd_port}",
            f"--listen-peer-urls=http://127.0.0.1:{place.etcd_peer_port}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{place.etcd_peer_port}",
            f"--initial-cluster=millrace=http://127.0.0.1:{place.etcd_peer_port}",
            "--client-cert-auth",
            f"--trusted-ca-file={self.ca}",
            *_pair(identity, "--cert-file", "--key-file"),
            "--unsafe-no-fsync",
            "--logger=zap",
            "--log-level=warn",
        ]

    def _apiserver_flags(self) -> list[str]:
        place = self.place
        names = (
            "localhost",
            "127.0.0.1",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        )
        serving = self.authority.issue("apiserver", user="kube-apiserver", hosts=(*names, place.first_service_address, place.address))
        etcd_client = self.authority.issue("apiserver-etcd", user="apiserver-etcd")
        kubelet_client = self.authority.issue("apiserver-kubelet", user="apiserver-kubelet", groups=("system:masters",))
        front_proxy = self.authority.issue("front-proxy", user="front-proxy")
        signing_key = self.authority.signing_key("service-accounts")
        audit_policy = self.folder / "audit-policy.json"
        audit_policy.write_text(json.dumps(AUDIT_POLICY))
        return [
            f"--bind-address={place.address}",
            f"--advertise-address={place.address}",
            f"--secure-port={place.api_port}",
            *(["--endpoint-reconciler-type=none"] if place.is_loopback else []),
            f"--etcd-servers=https://127.0.0.1:{place.etcd_port}",
            f"--etcd-cafile={self.ca}",
            *_pair(etcd_client, "--etcd-certfile", "--etcd-keyfile"),
            *_pair(serving, "--tls-cert-file", "--tls-private-key-file"),
            f"--client-ca-file={self.ca}",
            f"--service-cluster-ip-range={place.service_range}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={signing_key}",
            f"--service-account-signing-key-file={signing_key}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--default-not-ready-toleration-seconds={GIVEN_UP_SECONDS}",
            f"--default-unreachable-toleration-seconds={GIVEN_UP_SECONDS}",
            f"--audit-policy-file={audit_policy}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-maxbackup=1",
            # exec and logs would otherwise look the node's name up in DNS.
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={self.ca}",
            *_pair(kubelet_client, "--kubelet-client-certificate", "--kubelet-client-key"),
            # Aggregated APIs (metrics adapters) are called as the front proxy, straight at the pod: no kube-proxy is needed here.
            "--enable-aggregator-routing=true",
            f"--requestheader-client-ca-file={self.ca}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            *_pair(front_proxy, "--proxy-client-cert-file", "--proxy-client-key-file"),
        ]

    def _controller_manager_flags(self) -> list[str]:
        kubeconfig = self._component_kubeconfig("kube-controller-manager")
        return [
            "--bind-address=127.0.0.1",
            f"--secure-port={self.place.controller_manager_port}",
            *_delegated(kubeconfig),
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self.authority.signing_key('service-accounts')}",
            f"--root-ca-file={self.ca}",
            f"--cluster-cidr={self.place.pod_range}",
            f"--node-monitor-grace-period={NODE_GRACE_SECONDS}s",
            # The defaults of 20 and 30 would make garbage collection, not the operator, the slow part of the tests.
            "--kube-api-qps=300",
            "--kube-api-burst=600",
        ]

    def _scheduler_flags(self) -> list[str]:
        kubeconfig = self._component_kubeconfig("kube-scheduler")
        return ["--bind-address=127.0.0.1", f"--secure-port={self.place.scheduler_port}", *_delegated(kubeconfig), "--leader-elect=false"]

    def _component_kubeconfig(self, name: str) -> Path:
        identity = self.authority.issue(name, user=f"system:{name}")
        return self.authority.kubeconfig(self.folder / f"kubeconfig-{name}", url=self.url, identity=identity)


def _pair(identity: Certificate, certificate_flag: str, key_flag: str) -> list[str]:
    return [f"{certificate_flag}={identity.certificate}", f"{key_flag}={identity.key}"]


def _delegated(kubeconfig: Path) -> list[str]:
    flags = ("--kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig")
    return [f"{flag}={kubeconfig}" for flag in flags]


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
