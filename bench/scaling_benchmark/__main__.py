"""One load step under our autoscaler and under a plain HorizontalPodAutoscaler on CPU, with the same pods, bounds and clients.

Both with the defaults that users have: ours as the operator comes, the HPA with Kubernetes' own behaviour and metrics-server's 15 s. Prints
a table, writes scaling.json. The cluster stays up; `make clean` takes it down.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import hpa
from cluster.provider import Provider, choose
from demo_service import PATIENT, Service, demo_service
from engine_benchmark.machine import CPU_INFO, cpu_model, revision
from installation import Installation, References
from kube import Kube, Manifest, fresh_namespace, wait_for
from nodes import APART, node_names
from scaling_benchmark.figures import Cycle, cycle, table
from scaling_benchmark.watcher import Watcher, watching
from traffic import Traffic

CLIENTS, TOKENS = 20, 100
"""One replica holds twelve, running and waiting, and two hold all: until then some are refused, and ask again a second later."""
MOST = 2
ARMS: dict[str, Manifest] = {
    "Millrace": {"autoscaling": {"minReplicas": 1, "maxReplicas": MOST}},
    "HPA on CPU": {"autoscaling": {"mode": "None"}},
}
SERVICE: Manifest = {
    "batching": {"maxSize": 4},
    "queue": {"maxSize": 8},
    "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
    **PATIENT,
}
UP_SECONDS, HOLD_SECONDS, DOWN_SECONDS = 420, 30, 600
DEFAULT_STABLE_SECONDS = 300
"""Kubernetes' own window before an HPA shrinks."""


def main() -> int:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    provider = choose()
    kube = Kube(provider.up())
    references = References.built(provider)
    Installation(kube, references).by_chart(environment={})
    _warm_up(kube, provider, references.model)
    with hpa.running(kube, provider):
        cycles = [_run(kube, provider, references.model, arm) for arm in options.arms]
    document = {"machine": {"cpu": cpu_model(CPU_INFO.read_text()), "revision": revision()}, "rows": [asdict(each) for each in cycles]}
    (options.out / "scaling.json").write_text(json.dumps(document, indent=1))
    print(table(cycles))
    return 0


def _warm_up(kube: Kube, provider: Provider, model: str) -> None:
    """A replica on each node, so that the first arm does not pull the images for the second."""
    with fresh_namespace(kube) as namespace:
        spec = {**SERVICE, "autoscaling": {"mode": "None"}, "replicas": len(node_names(kube)), "topologySpreadConstraints": APART}
        kube.apply(demo_service("chat", namespace=namespace, model_image=model, **spec))
        Service(kube, namespace, "chat", provider.node_address()).wait_ready()


def _run(kube: Kube, provider: Provider, model: str, arm: str) -> Cycle:
    with fresh_namespace(kube) as namespace:
        kube.apply(demo_service("chat", namespace=namespace, model_image=model, **SERVICE, **ARMS[arm]))
        service = Service(kube, namespace, "chat", provider.node_address()).wait_ready()
        if arm != "Millrace":
            kube.apply(*hpa.autoscaler(service, most=MOST, stable_seconds=DEFAULT_STABLE_SECONDS))
            wait_for("it has figures", lambda: hpa.decides(service), seconds=UP_SECONDS, tell=service.describe)
        with watching(service) as watcher:
            return _step(service, watcher, arm)


def _step(service: Service, watcher: Watcher, arm: str) -> Cycle:
    watcher.begin()
    with Traffic(service.url, clients=CLIENTS, max_tokens=TOKENS, most_seconds=UP_SECONDS + 2 * HOLD_SECONDS) as traffic:
        old = watcher.samples[0].pods.keys()

        def answers() -> bool:
            return any(pod.completed for name, pod in watcher.samples[-1].pods.items() if name not in old)

        wait_for(f"{arm}: the new replica answers", answers, seconds=UP_SECONDS, tell=service.describe)
        answered_at = watcher.now
        wait_for("the load lasts", lambda: watcher.now > answered_at + HOLD_SECONDS, seconds=2 * HOLD_SECONDS)
    load_seconds = watcher.now
    wait_for(f"{arm}: one is left", lambda: len(watcher.samples[-1].pods) == 1, seconds=DOWN_SECONDS, tell=service.describe)
    return cycle(arm, tuple(watcher.samples), traffic.outcomes, load_seconds=load_seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-scaling ARGS=…", description=__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="the folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
