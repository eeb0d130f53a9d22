"""A server that hangs, as only its readiness shows: the status says so while it lasts, and why it is no cold start."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from demo_service import Service
from kube import Kube, condition, wait_for

TOLD_SECONDS = 30


def server_of(pod: str) -> psutil.Process:
    """The front of a pod, found among this machine's processes: the nodes are its namespaces."""
    for process in psutil.process_iter():
        try:
            if "millrace_server" in process.cmdline() and process.environ().get("HOSTNAME") == pod:
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"no process of pod {pod}")


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_a_server_that_hangs_is_told_in_time_and_so_is_its_return(serve: Callable[..., Service], kube: Kube) -> None:
    service = serve(autoscaling={"maxReplicas": 1}).wait_ready()
    [pod] = kube.pods(service.namespace, service.name)

    def ready() -> tuple[str, str]:
        told = condition(service.manifest(), "Ready")
        return told["status"], told["reason"]

    with frozen(server_of(pod["metadata"]["name"])):
        began = time.monotonic()
        wait_for("the hang is told", lambda: ready() == ("False", "NotResponding"), seconds=TOLD_SECONDS, tell=service.describe)
        print(f"told after {time.monotonic() - began:.1f} s")
    wait_for("its return is told", lambda: ready() == ("True", "Serving"), seconds=TOLD_SECONDS, tell=service.describe)
