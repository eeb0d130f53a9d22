"""What a user sees who applies a bad resource: the field's path and a sentence, and nothing is created.

Every single rule is tested at a lower floor, against the API server alone: tests/operator/test_crd.py.
"""

import pytest

from demo_service import demo_service
from installation import Installation, References
from kube import Kube, Manifest, Refused

BAD: dict[str, Manifest] = {
    "spec.autoscaling": {"autoscaling": {"minReplicas": 5, "maxReplicas": 2}},
    "spec.batching.maxSize": {"batching": {"maxSize": 0}},
    "spec.device": {"device": "tpu"},
    "spec.accelerators": {"accelerators": {"count": 1}},
    "spec.drainSeconds": {"requestTimeoutSeconds": 100, "drainSeconds": 30},
    "spec.replicas": {"replicas": 3},
    "spec.model.source": {"model": {"name": "demo", "source": "s3://bucket/model"}},
}


@pytest.mark.parametrize("path", BAD)
def test_a_bad_resource_is_refused_by_its_path(
    path: str, kube: Kube, installation: Installation, references: References, namespace: str
) -> None:
    with pytest.raises(Refused, match=path.replace(".", r"\.")):
        kube.apply(demo_service("bad", namespace=namespace, model_image=references.model, **BAD[path]))
    assert not kube.exists("infsvc", "bad", "-n", namespace)


@pytest.mark.parametrize("name", ["chat-redis", "chat-metrics", "n" * 46])
def test_a_name_that_collides_with_a_child_is_refused(
    name: str, kube: Kube, installation: Installation, references: References, namespace: str
) -> None:
    with pytest.raises(Refused, match=r"metadata\.name"):
        kube.apply(demo_service(name, namespace=namespace, model_image=references.model))
    assert not kube.exists("infsvc", name, "-n", namespace)


def test_an_unknown_field_is_refused(kube: Kube, installation: Installation, references: References, namespace: str) -> None:
    with pytest.raises(Refused, match=r"InferenceService\.spec.*unknown field .batchSize"):
        kube.apply(demo_service("bad", namespace=namespace, model_image=references.model, batchSize=4))
