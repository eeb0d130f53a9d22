"""The simulation's replica is the real server's admission, told in virtual time."""

from dataclasses import replace

import pytest

from millrace_operator.simulate.replica import Replica, Request
from millrace_server.admission import Admission
from millrace_server.errors import RequestError
from simulate.scenes import SCENE

MEASURED = SCENE.seconds_per_request
"""When the server has seen one request of this length."""


def real(in_system: int) -> Admission:
    server = Admission(slots=SCENE.slots, max_queue=SCENE.capacity - SCENE.slots, max_concurrent=1000, now=0)
    server.enter(now=0, timeout=1000)
    server.engine_runs(1, now=0)
    server.leave(now=MEASURED)
    for _ in range(in_system):
        server.enter(now=MEASURED, timeout=1000)
    return server


def simulated(in_system: int, *, timeout: float) -> Replica:
    replica = Replica(name="replica", scene=replace(SCENE, timeout=timeout), created=0, ready_at=0)
    replica.running = min(in_system, SCENE.slots)
    replica.queue = {place: Request(asked_at=0, seconds=1) for place in range(in_system - replica.running)}
    return replica


@pytest.mark.parametrize("timeout", [4, 12, 30])
@pytest.mark.parametrize("in_system", range(SCENE.capacity + 1))
def test_a_simulated_replica_refuses_whom_the_server_refuses(in_system: int, timeout: float) -> None:
    server, replica = real(in_system), simulated(in_system, timeout=timeout)
    if replica.refuses():
        with pytest.raises(RequestError) as refused:
            server.enter(now=MEASURED, timeout=timeout)
        assert refused.value.retry_after == replica.retry_after()
    else:
        server.enter(now=MEASURED, timeout=timeout)
