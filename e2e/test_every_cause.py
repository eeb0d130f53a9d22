"""Real faults on a real Kubernetes, side by side, and the whole status that a user reads of each: `statuses/*.yaml`.

`GOLDEN=write .venv/bin/python -m pytest e2e/test_every_cause.py` writes them anew; read their diff as a user will. Which test makes the
other causes is in tests/contract/test_causes.py.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.provider import Provider
from demo_service import Service, demo_service
from installation import Installation, References
from kube import Kube, Manifest, condition, fresh_namespace, wait_for

STATUSES = Path(__file__).with_name("statuses")
TOLD_SECONDS = 120
"""For all of them at once on two cores; one alone is told within seconds."""
NOWHERE = "registry.millrace.local:5000/millrace/nowhere:none"


def causes(model: str) -> Mapping[str, Mapping[str, Any]]:
    """Name of a service, which is that of its golden file → the fields that are its fault."""
    demo = {"name": "millrace-demo", "dtype": "float32"}
    return {
        "image-missing": {"image": NOWHERE},
        "image-misspelt": {"image": "registry.millrace.local:5000/Millrace/Server:latest"},
        "model-image-missing": {"model": {**demo, "source": f"oci://{NOWHERE}#/model"}},
        "model-folder-missing": {"model": {**demo, "source": f"oci://{model}#/nowhere"}},
        "claim-missing": {"model": {**demo, "source": "pvc://nobody-made-it"}},
        "claim-pending": {"model": {**demo, "source": "pvc://nobody-provides-it"}},
        "gpu-missing": {"device": "cuda"},
        "node-missing": {"nodeSelector": {"example.com/no-such": "node"}},
        "token-missing": {"model": {**demo, "source": "hf://example/model", "tokenSecret": "nobody-made-it"}},
        "memory-short": {"resources": {"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}}},
        "name-taken": {},
        "runtime-missing": {"runtimeClassName": "nobody-made-it"},
        "quota-exceeded": {},
    }


@pytest.fixture(scope="module")
def ill(kube: Kube, provider: Provider, installation: Installation, references: References) -> Iterator[Callable[[str], Service]]:
    """All of them, applied at once; the one with a quota in a namespace of its own."""
    with fresh_namespace(kube) as shared, fresh_namespace(kube) as bounded:
        kube.apply(claim(shared), service_of_somebody(shared), quota(bounded))
        places = {name: bounded if name == "quota-exceeded" else shared for name in causes(references.model)}
        kube.apply(
            *(
                demo_service(name, namespace=places[name], model_image=references.model, autoscaling={"maxReplicas": 1}, **fault)
                for name, fault in causes(references.model).items()
            )
        )
        yield lambda name: Service(kube, places[name], name, provider.node_address())


@pytest.mark.parametrize("name", causes(""))
def test_the_status_tells_what_is_wrong_and_what_to_do(ill: Callable[[str], Service], name: str) -> None:
    service, golden = ill(name), STATUSES / f"{name}.yaml"
    if os.environ.get("GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(settled(service))
    expected = golden.read_text()

    def difference() -> str:
        return "\n".join(difflib.unified_diff(expected.splitlines(), told(service).splitlines(), "expected", "told", lineterm=""))

    wait_for(f"the status of {golden.name}", lambda: not difference(), seconds=TOLD_SECONDS, tell=difference)


def test_there_is_no_golden_file_without_its_fault() -> None:
    assert {file.stem for file in STATUSES.glob("*.yaml")} == set(causes(""))


def told(service: Service) -> str:
    """Its status as YAML, without what differs from run to run."""
    status = service.manifest().get("status", {})
    for each in status.get("conditions", ()):
        each.pop("lastTransitionTime")
    text = yaml.safe_dump(status, width=1000, sort_keys=True)
    text = re.sub(rf"\b{service.name}-[0-9a-f]{{8,10}}(-[0-9a-z]{{5}})?\b", "POD", text)
    text = re.sub(r"\bmillrace-([a-z-]+):[0-9a-f]{12}\b", r"millrace-\1:HASH", text)
    return text.replace(service.namespace, "NAMESPACE")


def settled(service: Service) -> str:
    """What it says when it has told a trouble and says the same again and again."""
    said: list[str] = []

    def is_settled() -> bool:
        said.append(told(service))
        is_told = condition(service.manifest(), "Ready").get("reason", "Starting") not in ("Starting", "Progressing", "NoReplicas")
        return is_told and len(said) > 40 and len(set(said[-40:])) == 1

    wait_for("it tells a trouble", is_settled, seconds=TOLD_SECONDS, tell=service.describe)
    return said[-1]


def claim(namespace: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "nobody-provides-it", "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "none-such", "resources": {"requests": {"storage": "1Gi"}}},
    }


def service_of_somebody(namespace: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "name-taken", "namespace": namespace},
        "spec": {"ports": [{"port": 80}]},
    }


def quota(namespace: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-pods", "namespace": namespace},
        "spec": {"hard": {"pods": "0"}},
    }
