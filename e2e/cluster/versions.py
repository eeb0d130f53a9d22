"""What the clusters are made of, by version. Kubernetes' own dependencies are pinned in go/kubernetes/go.{mod,sum}."""

KUBERNETES = "v1.34.4"
COREDNS = "v1.14.7"
HELM = "v3.21.4"
KIND = "v0.30.0"
MINIMUM_GO = (1, 24)
