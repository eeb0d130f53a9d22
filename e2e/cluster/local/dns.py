"""CoreDNS as the cluster's DNS: one pod on each node, under Pod Security `restricted`. Names outside the cluster do not exist."""

from typing import Any

from cluster.local.node_files import DNS_ADDRESS

NAMESPACE = "kube-system"
NAME = "coredns"
_LABELS = {"k8s-app": "kube-dns"}
_PORT = 1053
"""Above 1024, so that no capability is needed; the Service maps 53 to it."""

COREFILE = f"""\
cluster.local:{_PORT} in-addr.arpa:{_PORT} {{
    errors
    health :8080
    ready :8181
    kubernetes cluster.local in-addr.arpa {{
        pods insecure
        ttl 5
    }}
    prometheus :9153
    loadbalance
}}
.:{_PORT} {{
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"""
"""The second block answers at once for the rest of the world: nothing here reaches it, and a client should not wait to learn that."""


def manifests(image: str) -> list[dict[str, Any]]:
    """Every object of the DNS server."""
    meta = {"name": NAME, "namespace": NAMESPACE}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "system:coredns"},
            "rules": [
                {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "system:coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": COREFILE}},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {**meta, "labels": _LABELS}, "spec": _daemon_set(image)},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": NAMESPACE, "labels": _LABELS},
            "spec": {
                "clusterIP": DNS_ADDRESS,
                "selector": _LABELS,
                "ports": [
                    {"name": "dns", "port": 53, "targetPort": _PORT, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "targetPort": _PORT, "protocol": "TCP"},
                ],
            },
        },
    ]


def _daemon_set(image: str) -> dict[str, Any]:
    return {
        "selector": {"matchLabels": _LABELS},
        "template": {
            "metadata": {"labels": _LABELS},
            "spec": {
                "serviceAccountName": NAME,
                "priorityClassName": "system-cluster-critical",
                "dnsPolicy": "Default",
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [
                    {
                        "name": NAME,
                        "image": image,
                        "args": ["-conf", "/etc/coredns/Corefile"],
                        "ports": [
                            {"name": "dns", "containerPort": _PORT, "protocol": "UDP"},
                            {"name": "dns-tcp", "containerPort": _PORT, "protocol": "TCP"},
                        ],
                        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "failureThreshold": 5},
                        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
                        "resources": {"limits": {"memory": "170Mi"}, "requests": {"cpu": "50m", "memory": "30Mi"}},
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                            "readOnlyRootFilesystem": True,
                        },
                        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
                    }
                ],
                "volumes": [{"name": "config", "configMap": {"name": NAME}}],
            },
        },
    }
