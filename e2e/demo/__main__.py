"""`make demo`: from a checkout to answers from a model on a real Kubernetes, in one command.

Ends with exit status 0 only when the answers were right and the load made one replica two; the last line is `demo: <URL>`. A service
that an earlier run left with more than one replica is therefore applied anew: by itself it would take minutes to shrink.
MODEL=hf://OWNER/NAME serves a model of the hub instead, whose answers are shown and not compared.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from cluster import images
from cluster.binaries import CannotBuild
from cluster.packages import MissingTool, tool
from cluster.process import NotReady
from cluster.progress import say, step
from cluster.provider import CHECKOUT, NoCluster, Provider, choose
from cluster.push import NoSuchImage
from demo import manifest, prompts
from demo.image import model_image
from demo.model import TrainingFailed
from demo_service import Service
from installation import Installation, References
from kube import Kube, Late, Refused, wait_for
from traffic import Traffic, TrafficStopped

READY_SECONDS = 600
"""A cold start on two busy cores, or the download of a small hub model."""
GONE_SECONDS = 90
LOAD_SECONDS = 300
"""The second replica runs on the other node, which may have to pull the server's image first, under the load."""
LOAD_CLIENTS = 24
LOAD_TOKENS = 100
LOOK_SECONDS = 0.5
HUB_TOKENS = 40


class DemoFailed(Exception):
    """What was promised and did not happen."""


@dataclass
class Stages:
    """What was done and how long it took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        with step(name):
            yield
        self.seconds[name] = time.monotonic() - started

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.0f} s: {parts}"


def main(hub_model: str) -> None:
    """The whole demo. Raises DemoFailed, or what the part that failed raises."""
    if hub_model and not hub_model.startswith(manifest.HUB):
        raise DemoFailed(f"MODEL={hub_model} must be hf://OWNER/NAME[@REVISION]")
    stages = Stages()
    provider = choose()
    with stages.stage("cluster"):
        kube = Kube(provider.up())
    with stages.stage("operator and server images"):
        operator, server = (provider.load(images.build(target)) for target in ("operator", "server"))
    with stages.stage("model"):
        model = hub_model or provider.load(model_image())
    with stages.stage("helm upgrade --install millrace charts/millrace"):
        Installation(kube, References(operator, server, model)).by_chart(environment={})
    with stages.stage(f"kubectl apply -f {manifest.EXAMPLE.relative_to(CHECKOUT)}"):
        wanted = manifest.of_hub_model(model) if hub_model else manifest.of_demo_model(model)
        service = apply(wanted, kube, provider)
    with stages.stage("ready"):
        service.wait_ready(seconds=READY_SECONDS, show=lambda news: say(f"  {news}"))
    with stages.stage("answers"):
        show_answers(service, compare=not hub_model)
    with stages.stage("scale out"):
        scale_out(service, compare=not hub_model)
    print(kube.kubectl("get", "infsvc", "-n", service.namespace), end="")
    say(str(stages))
    print(what_next(kube.kubeconfig, service))
    print(f"demo: {service.url}", flush=True)


def apply(wanted: list[manifest.Manifest], kube: Kube, provider: Provider) -> Service:
    """Namespace and InferenceService, which starts with the one replica that it asks for."""
    namespace, name = (wanted[-1]["metadata"][key] for key in ("namespace", "name"))
    service = Service(kube, namespace, name, provider.node_address())
    if kube.exists("deployment", name, "-n", namespace) and service.replicas() > 1:
        say(f"  an earlier run left {service.replicas()} replicas: deleted, and applied anew")
        kube.kubectl("delete", "infsvc", name, "-n", namespace)
        children = "deployments,services,pods", "-n", namespace, "-l", f"app.kubernetes.io/instance={name}"
        wait_for("the earlier service is gone", lambda: not kube.exists(*children), seconds=GONE_SECONDS)
    kube.apply(*wanted)
    return service


def show_answers(service: Service, *, compare: bool) -> None:
    """Three requests through the cluster's Service, one after another."""
    for question in prompts.SHOWN:
        answer = service.infer(question.prompt, max_tokens=question.max_tokens if compare else HUB_TOKENS)
        say(f"  {answer['text']}   ({answer['tokens_generated']} tokens, {answer['latency_ms']:.0f} ms)")
        if compare and answer["text"] != question.text(question.max_tokens):
            raise DemoFailed(f"{question.prompt!r} was answered {answer['text']!r}, not {question.text(question.max_tokens)!r}")


def scale_out(service: Service, *, compare: bool) -> None:
    """A load that one replica is not meant to carry alone, until a second one is ready. Raises DemoFailed unless it begins with one."""
    before = service.replicas()
    if before != 1:
        raise DemoFailed(f"the service has {before} replicas before the load: there is nothing to show; run the demo again")
    question = prompts.SHOWN[0]
    shown = ""
    end = time.monotonic() + LOAD_SECONDS
    with Traffic(service.url, clients=LOAD_CLIENTS, max_tokens=LOAD_TOKENS, prompt=question.prompt) as traffic:
        while True:
            status = service.manifest()["status"]
            scaling = status.get("autoscaling", {})
            wanted, ready = service.replicas(), status.get("readyReplicas", 0)
            now = f"{wanted} replicas wanted, {ready} ready"
            if now != shown:
                say(f"  {now}; {traffic.answered} requests answered; {scaling.get('reason', '')}")
                shown = now
            if min(wanted, ready) >= 2:
                break
            if time.monotonic() > end:
                raise DemoFailed(f"no second replica within {LOAD_SECONDS} s: {now}; {scaling}\n{service.describe()}")
            time.sleep(LOOK_SECONDS)
    right = f"200 {question.text(LOAD_TOKENS)}"
    wrong = {
        outcome: count for outcome, count in traffic.outcomes.items() if not (outcome == right if compare else outcome.startswith("200 "))
    }
    say(f"  {traffic.answered} requests answered under load, {sum(wrong.values())} wrongly")
    if wrong or not traffic.answered:
        raise DemoFailed(f"under load some answers were wrong: {wrong}")


def what_next(kubeconfig: Path, service: Service) -> str:
    """Four things to try, each a line to paste."""
    kubectl = f"kubectl -n {service.namespace}"
    return f"""
try next, after: export KUBECONFIG={kubeconfig} PATH={tool("kubectl").parent}:$PATH
  scale  {kubectl} patch infsvc {service.name} --type=merge -p '{{"spec":{{"autoscaling":{{"minReplicas":2}}}}}}'
  edit   {kubectl} edit infsvc {service.name}
  logs   {kubectl} logs deployment/{service.name} -c server -f
  clean  make clean
"""


if __name__ == "__main__":
    try:
        main(os.environ.get("MODEL", ""))
    except (
        NoCluster,
        NotReady,
        MissingTool,
        CannotBuild,
        NoSuchImage,
        images.ImageBuildFailed,
        TrainingFailed,
        Refused,
        Late,
        TrafficStopped,
        DemoFailed,
    ) as failure:
        sys.exit(f"demo: {failure}")
    except httpx.HTTPError as failure:
        sys.exit(f"demo: a request failed: {type(failure).__name__} {failure}")
    except subprocess.CalledProcessError as failure:
        sys.exit(f"demo: {failure}\n{failure.stderr or ''}")
    except KeyboardInterrupt:
        sys.exit("demo: interrupted; the same command goes on where this one stopped")
