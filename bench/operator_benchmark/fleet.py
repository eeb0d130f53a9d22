"""A hundred services of five replicas whose load changes all the time: what it costs the operator to follow them."""

import re
import time

from cluster.control_plane import ControlPlane
from operator_benchmark.figures import Fleet, lag_percentile, percentile
from operator_benchmark.operator_process import OperatorProcess
from operator_benchmark.services import Told, TooSlow, apply
from operator_benchmark.stub_pods import stub_pods

SERVICES, REPLICAS, MOST = 100, 5, 8
SECONDS = 120
PATIENCE_SECONDS = 300
SETTLE_SECONDS = 20
LAG = "millrace_loop_lag_seconds_bucket"


def run(api: ControlPlane, operator: OperatorProcess) -> Fleet:
    """Raises TooSlow."""
    names = [f"fleet-{number}" for number in range(SERVICES)]
    told = Told(api)
    with stub_pods(api) as pods:
        apply(api, names, autoscaling={"minReplicas": REPLICAS, "maxReplicas": MOST}, batching={"maxSize": 8})
        told.wait(names, seconds=PATIENCE_SECONDS)
        _wait_until_all_are_read(operator)
        time.sleep(SETTLE_SECONDS)
        lags, writes, steps = operator.series(LAG), operator.total("millrace_writes_total"), _steps(operator)
        cpu, began = operator.total("process_cpu_seconds_total"), time.monotonic()
        ages: list[float] = []
        while time.monotonic() < began + SECONDS:
            time.sleep(1)
            ages += operator.series("millrace_service_load_age_seconds").values()
        seconds = time.monotonic() - began
        buckets = {_bound(labels): count - lags.get(labels, 0) for labels, count in operator.series(LAG).items()}
        return Fleet(
            services=SERVICES,
            pods=pods.count(),
            seconds=seconds,
            lag_p99_seconds=lag_percentile(buckets, 0.99),
            age_p99_seconds=percentile(ages, 0.99),
            steps=_steps(operator) - steps,
            writes=operator.total("millrace_writes_total") - writes,
            cpu_share=(operator.total("process_cpu_seconds_total") - cpu) / seconds,
            rss_bytes=operator.total("process_resident_memory_bytes"),
        )


def _wait_until_all_are_read(operator: OperatorProcess) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (read := len(operator.series("millrace_service_load"))) < SERVICES:
        if time.monotonic() > deadline:
            raise TooSlow(f"the loads of {read} of {SERVICES} services are known")
        time.sleep(1)


def _steps(operator: OperatorProcess) -> float:
    return operator.series("millrace_writes_total").get('kind="Deployment",verb="scale"', 0)


def _bound(labels: str) -> float:
    found = re.search(r'le="([^"]+)"', labels)
    if found is None:
        raise ValueError(f"no bound in {labels}")
    return float(found[1])
