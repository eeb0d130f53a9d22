"""What the clusters are made of, by version. Kubernetes' own dependencies are pinned in go/kubernetes/go.{mod,sum}."""

KUBERNETES = "v1.34.4"
COREDNS = "v1.14.7"
HELM = "v3.21.4"
METRICS_SERVER = "v0.9.0"
PROMETHEUS_OPERATOR = "v0.85.0"
KEDA = "v2.21.0"
KIND = "v0.30.0"
KIND_NODE_IMAGE = "kindest/node:v1.34.0@sha256:7416a61b42b1662ca6ca89f02028ac133a309a2a30ba309614e8ec94d976dc5a"
"""The default of that release of kind, from its source (pkg/apis/config/defaults)."""
MINIMUM_GO = (1, 26)
"""What the modules ask for in their go.mod; helm asks for the newest."""
