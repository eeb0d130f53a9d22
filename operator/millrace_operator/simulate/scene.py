"""What requests meet: the limits that a service's spec sets, how fast it answers and starts, and how its clients behave."""

from dataclasses import dataclass

from millrace_operator.api import InferenceService, effective
from millrace_operator.autoscale import Bounds, bounds_of


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All durations in seconds. `seconds_per_request` is the mean time that a request holds a slot."""

    bounds: Bounds
    slots: int
    """Requests that run at once in a replica."""
    capacity: int
    """Requests in the system, waiting and running, above which a replica refuses."""
    timeout: float
    """After which a request is given up."""
    seconds_per_request: float
    cold_start: float
    """From the wish for a replica to its first answer."""
    retries: int
    """How often a client asks again when it is refused."""

    def replicas_for(self, requests_per_second: float) -> float:
        """That bear this rate for ever at the target, as a fraction."""
        return requests_per_second * self.seconds_per_request / min(self.bounds.target, self.slots)


def of_service(service: InferenceService, *, seconds_per_request: float, cold_start: float, retries: int) -> Scene:
    spec, slots = service.spec, effective(service).slots
    return Scene(
        bounds=bounds_of(service),
        slots=slots,
        capacity=min(spec.max_concurrent_requests, slots + spec.queue.max_size),
        timeout=spec.request_timeout_seconds,
        seconds_per_request=seconds_per_request,
        cold_start=cold_start,
        retries=retries,
    )
