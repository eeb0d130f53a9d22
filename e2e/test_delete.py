"""A deleted service takes every child with it, whether or not an operator runs: the garbage collector needs none."""

from collections.abc import Callable

from demo_service import Service
from installation import REPLICAS, Installation
from kube import Kube, wait_for

KINDS = "deployments,replicasets,pods,services,configmaps,secrets,serviceaccounts,networkpolicies,poddisruptionbudgets"
GIVEN = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
"""What every namespace has."""


def children(kube: Kube, namespace: str) -> set[str]:
    return set(kube.kubectl("get", KINDS, "-n", namespace, "-o", "name").split()) - GIVEN


def delete(kube: Kube, service: Service) -> None:
    assert children(kube, service.namespace), "there must be something to delete"
    kube.kubectl("delete", "infsvc", service.name, "-n", service.namespace, "--timeout=10s")
    wait_for(
        "every child is gone", lambda: not children(kube, service.namespace), seconds=90, tell=lambda: children(kube, service.namespace)
    )


def test_delete_removes_every_child(kube: Kube, serve: Callable[..., Service]) -> None:
    delete(kube, serve(cache={"type": "redis"}).wait_ready())


def test_delete_removes_every_child_while_no_operator_runs(kube: Kube, installation: Installation, serve: Callable[..., Service]) -> None:
    service = serve().wait_ready()
    installation.scale_operator(0)
    try:
        delete(kube, service)
    finally:
        installation.scale_operator(REPLICAS)
