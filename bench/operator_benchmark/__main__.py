"""How fast and how quiet the operator is, on a real API server without nodes: prints a table, writes operator.json and operator.svg.

A missed goal is said and is no failure (the machine may be busy); an operator that does not get there at all is.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil

from cluster.control_plane import ControlPlane
from engine_benchmark.machine import CHECKOUT, CPU_INFO, cpu_model, revision
from engine_benchmark.watch import machine_seconds
from operator_benchmark import floor, picture
from operator_benchmark.figures import Burst, Cost, Fleet, Floor, Idle, burst, seconds, verdict
from operator_benchmark.fleet import run as run_fleet
from operator_benchmark.operator_process import OperatorProcess
from operator_benchmark.services import NAMESPACE, Told, TooSlow, apply, children

SIZES = (1, 100, 1000)
SINGLES = 20
"""One at a time, so many times, for the percentiles of a single one."""
PATIENCE_SECONDS = 600
QUIET_SECONDS = 15
SETTLE_SECONDS = 5
"""A new API server computes the schema of a new kind; that is nobody's time."""


def main() -> int:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    bursts, idle, fleet = [], None, None
    for count in options.sizes:
        with _cluster() as api:
            least = _floor(api, count)
        with _cluster() as api, OperatorProcess(api.kubeconfig, options.out / "operator.log") as operator:
            bursts.append(_burst(api, operator, count, least))
            print(_line(bursts[-1]), flush=True)
            if options.idle_minutes and count == options.sizes[-1]:
                idle = _idle(operator, count, options.idle_minutes)
    if options.fleet:
        with _cluster() as api, OperatorProcess(api.kubeconfig, options.out / "operator.log") as operator:
            fleet = run_fleet(api, operator)
    _tell(bursts, idle, fleet, options.out)
    return 0


@contextmanager
def _cluster() -> Iterator[ControlPlane]:
    """A new one for each measurement: nothing is left of the one before."""
    with ControlPlane() as api:
        api.kubectl("apply", "-f", str(CHECKOUT / "crds"))
        api.kubectl("wait", "--for=condition=Established", "crd/inferenceservices.millrace.dev", "--timeout=30s")
        api.kubectl("create", "namespace", NAMESPACE)
        time.sleep(SETTLE_SECONDS)
        yield api


def _rounds(count: int) -> list[list[str]]:
    return [[f"one-{number}"] for number in range(SINGLES)] if count == 1 else [[f"of-{count}-{number}" for number in range(count)]]


def _floor(api: ControlPlane, count: int) -> Floor:
    taken, client = _taken(api), _processor_seconds(os.getpid())
    accepted: dict[str, float] = {}
    told: dict[str, float] = {}
    for names in _rounds(count):
        accepted |= apply(api, names)
        told |= floor.write(api, names)
    cpu = {name: value - taken[name] for name, value in _taken(api).items()}
    cpu["client"] = _processor_seconds(os.getpid()) - client
    return Floor(seconds=seconds(accepted, told, count=count), cpu_seconds=cpu)


def _burst(api: ControlPlane, operator: OperatorProcess, count: int, least: Floor) -> Burst:
    _settle(operator)
    before, cpu = operator.series("millrace_writes_total"), operator.total("process_cpu_seconds_total")
    passes, taken = operator.total("millrace_passes_total"), _taken(api, operator.pid)
    told = Told(api)
    accepted: dict[str, float] = {}
    for names in _rounds(count):
        accepted |= apply(api, names)
        told.wait(names, seconds=PATIENCE_SECONDS)
    neighbours = {name: value - taken[name] for name, value in _taken(api, operator.pid).items()}
    if children(api) != len(accepted):
        raise TooSlow(f"{children(api)} Deployments for {len(accepted)} services; see operator.log")
    _settle(operator)
    writes = {kind: value - before.get(kind, 0) for kind, value in operator.series("millrace_writes_total").items()}
    cost = Cost(
        passes=operator.total("millrace_passes_total") - passes,
        writes=writes,
        rss_bytes=operator.total("process_resident_memory_bytes"),
        cpu_seconds=operator.total("process_cpu_seconds_total") - cpu,
        neighbours_cpu_seconds=neighbours,
    )
    return burst(accepted, told.at, count=count, cost=cost, floor=least)


def _taken(api: ControlPlane, *clients: int) -> dict[str, float]:
    """Processor seconds so far, but not those of the clients and of ourselves."""
    parts = {name: _processor_seconds(child.process.pid) for name, child in api.children.items()}
    ours = sum(parts.values()) + sum(map(_processor_seconds, (*clients, os.getpid())))
    return {**parts, "others": machine_seconds() - ours}


def _processor_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _idle(operator: OperatorProcess, services: int, minutes: float) -> Idle:
    before, cpu, began = operator.series("millrace_writes_total"), operator.total("process_cpu_seconds_total"), time.monotonic()
    time.sleep(minutes * 60)
    after = operator.series("millrace_writes_total")
    return Idle(
        services=services,
        minutes=minutes,
        writes={kind: value - before.get(kind, 0) for kind, value in after.items() if value != before.get(kind, 0)},
        cpu_share=(operator.total("process_cpu_seconds_total") - cpu) / (time.monotonic() - began),
        rss_bytes=operator.total("process_resident_memory_bytes"),
    )


def _settle(operator: OperatorProcess) -> None:
    """Until nothing has been done for a while: the controllers' own writes cause passes too."""
    passes, since = -1.0, time.monotonic()
    while time.monotonic() - since < QUIET_SECONDS:
        time.sleep(1)
        if (now := operator.total("millrace_passes_total")) != passes:
            passes, since = now, time.monotonic()


def _line(each: Burst) -> str:
    return (
        f"{each.count:5} at once: all after {each.all_seconds:.2f} s; each p50 {each.p50_seconds:.2f} s, p95 {each.p95_seconds:.2f} s;"
        f" a bare client {each.floor_seconds:.2f} s, {each.times_the_floor:.2f} times as long"
        f" ({_told(each.floor_cpu_seconds)});"
        f" {each.writes_per_service:.2f} writes and {each.passes:.2f} passes per service;"
        f" CPU {each.cpu_seconds:.1f} s ({_told(each.neighbours_cpu_seconds)}); {each.rss_bytes / 2**20:.0f} MiB"
    )


def _told(cpu_seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {taken:.1f} s" for name, taken in cpu_seconds.items())


def _tell(bursts: Sequence[Burst], idle: Idle | None, fleet: Fleet | None, out: Path) -> None:
    if idle is not None:
        quiet = f"{idle.services} services, {idle.minutes:g} idle minutes: {sum(idle.writes.values()):g} writes"
        print(f"{quiet}, {idle.cpu_share:.1%} of a core, {idle.rss_bytes / 2**20:.0f} MiB")
    if fleet is not None:
        busy = (
            f"{fleet.services} services with {fleet.pods} pods under changing load, {fleet.seconds:.0f} s: {fleet.cpu_share:.1%} of a core"
        )
        late = f"event loop late by at most {fleet.lag_p99_seconds * 1000:g} ms (p99), readings {fleet.age_p99_seconds:.1f} s old (p99)"
        print(f"{busy}, {fleet.rss_bytes / 2**20:.0f} MiB; {late}; {fleet.steps:g} steps, {fleet.writes:g} writes")
    cpu, checkout = cpu_model(CPU_INFO.read_text()), revision()
    document = {
        "machine": {"cpu": cpu, "revision": checkout},
        "bursts": [asdict(each) for each in bursts],
        "idle": asdict(idle) if idle else None,
        "fleet": asdict(fleet) if fleet else None,
    }
    (out / "operator.json").write_text(json.dumps(document, indent=1))
    if bursts:
        caption = f"{cpu}, API server and etcd on the same cores, revision {checkout}"
        (out / "operator.svg").write_text(picture.draw(bursts, caption=caption))
    missed = verdict(bursts, idle, fleet)
    print("MISSED: " + "; ".join(missed) if missed else "all goals met")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-operator ARGS=…", description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES, help="services applied at once")
    parser.add_argument("--idle-minutes", type=float, default=10, help="how long nothing happens to the last ones; 0: not measured")
    parser.add_argument("--fleet", action=argparse.BooleanOptionalAction, default=True, help="a hundred services under changing load")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="the folder for the log and the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
