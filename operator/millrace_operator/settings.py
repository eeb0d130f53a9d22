"""What the operator process is told, read once from the environment. Every duration is here, so that tests can scale it.

Durations are in seconds. The chart writes these variables; names are append-only.
"""

import socket
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from millrace_server.settings import Settings

Seconds = Annotated[float, Field(gt=0, le=86_400)]


def _words(value: object) -> object:
    """What commas separate, as an environment can say it."""
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


class OperatorSettings(Settings):
    """Every setting of the operator."""

    server_image: str = Field(alias="MILLRACE_SERVER_IMAGE", min_length=1)
    """Image of the server, unless an InferenceService names its own."""
    server_image_pull_policy: str = Field(
        default="IfNotPresent", alias="MILLRACE_SERVER_IMAGE_PULL_POLICY", pattern="^(Always|IfNotPresent|Never)$"
    )
    redis_image: str = Field(default="redis:8-alpine", alias="MILLRACE_REDIS_IMAGE", min_length=1)
    """Image of the Redis that a service with `spec.cache.type: redis` gets; it holds `redis-server` and `redis-cli`."""
    namespaces: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(default=(), alias="MILLRACE_NAMESPACES")
    """Namespaces to serve, separated by commas. Empty: all of them, which needs a ClusterRole."""
    identity: str = Field(default_factory=socket.gethostname, alias="POD_NAME", min_length=1)
    """Who holds the Lease; a suffix per process is added."""
    lease_namespace: str = Field(default="default", alias="MILLRACE_LEASE_NAMESPACE", min_length=1)
    lease_duration: Seconds = Field(default=15, alias="MILLRACE_LEASE_SECONDS")
    """How long an unrenewed Lease is respected by the others."""
    lease_renew_deadline: Seconds = Field(default=10, alias="MILLRACE_LEASE_RENEW_SECONDS")
    """How long the holder may write after its last renewal. The gap to lease_duration covers a write in flight."""
    lease_retry: Seconds = Field(default=2, alias="MILLRACE_LEASE_RETRY_SECONDS")
    port: int = Field(default=8081, alias="MILLRACE_PORT", ge=0, le=65_535)
    """Serves /livez, /readyz and /metrics. 0: any free port of the loopback address, for tests."""
    workers: int = Field(default=8, alias="MILLRACE_WORKERS", ge=1, le=256)
    """Passes that run at once, each for another InferenceService."""
    resync: Seconds = Field(default=600, alias="MILLRACE_RESYNC_SECONDS")
    """Between two full lists."""
    watch_silence: Seconds = Field(default=70, alias="MILLRACE_WATCH_SILENCE_SECONDS")
    """A watch that says nothing for so long, not even the API server's bookmark of every minute, is cut and begun anew."""
    coalesce: Seconds = Field(default=0.15, alias="MILLRACE_COALESCE_SECONDS")
    """How long a burst of events is collected before its pass starts."""
    pass_deadline: Seconds = Field(default=60, alias="MILLRACE_PASS_SECONDS")
    stall: Seconds = Field(default=600, alias="MILLRACE_STALL_SECONDS")
    """How long a key may wait for a worker, a pass outlive its deadline, or no pass come to an end, until /livez fails."""
    first_retry: Seconds = Field(default=1, alias="MILLRACE_FIRST_RETRY_SECONDS")
    last_retry: Seconds = Field(default=300, alias="MILLRACE_LAST_RETRY_SECONDS")
    fight_window: Seconds = Field(default=600, alias="MILLRACE_FIGHT_WINDOW_SECONDS")
    """Five repairs of a child in this time are a fight with another writer, which is over when nobody has changed it for as long."""
    writes_per_second: float = Field(default=200, alias="MILLRACE_WRITES_PER_SECOND", gt=0, le=10_000)
    """Rate of the bucket that every API write takes from; the Lease does not. A thousand new services cost some ten thousand writes."""
    write_burst: int = Field(default=400, alias="MILLRACE_WRITE_BURST", ge=1, le=100_000)
    read_timeout: Seconds = Field(default=30, alias="MILLRACE_READ_SECONDS")
    write_timeout: Seconds = Field(default=5, alias="MILLRACE_WRITE_SECONDS")
    """An answer that takes longer counts as failed. At most lease_duration - lease_renew_deadline."""
    load_interval: Seconds = Field(default=5, alias="MILLRACE_LOAD_INTERVAL_SECONDS")
    load_timeout: Seconds = Field(default=1, alias="MILLRACE_LOAD_TIMEOUT_SECONDS")
    load_report_interval: Seconds = Field(default=30, alias="MILLRACE_LOAD_REPORT_SECONDS")
    """Between two status writes that only tell a changed load."""
    scale_down_window: Seconds = Field(default=300, alias="MILLRACE_SCALE_DOWN_WINDOW_SECONDS")
    """The largest need of this window decides how far a service shrinks."""
    scale_up_interval: Seconds = Field(default=15, alias="MILLRACE_SCALE_UP_SECONDS")
    """Between two steps up."""
    scale_down_interval: Seconds = Field(default=60, alias="MILLRACE_SCALE_DOWN_SECONDS")
    """Between two steps down."""
    optional_interval: Seconds = Field(default=5, alias="MILLRACE_OPTIONAL_INTERVAL_SECONDS")
    """Between two looks for kinds that may be missing, such as ServiceMonitor, and for what became of the children of these kinds."""
    rival_interval: Seconds = Field(default=15, alias="MILLRACE_RIVAL_INTERVAL_SECONDS")
    """Between two looks for other autoscalers of the Deployments."""
    log_level: str = Field(default="INFO", alias="MILLRACE_LOG_LEVEL", pattern="^(DEBUG|INFO|WARNING|ERROR)$")

    @model_validator(mode="after")
    def _leave_room_for_a_write_in_flight(self) -> Self:
        if self.lease_renew_deadline + self.write_timeout > self.lease_duration:
            raise ValueError("MILLRACE_LEASE_RENEW_SECONDS + MILLRACE_WRITE_SECONDS must not exceed MILLRACE_LEASE_SECONDS")
        if self.lease_retry * 2 > self.lease_renew_deadline:
            raise ValueError("MILLRACE_LEASE_RETRY_SECONDS must be at most half of MILLRACE_LEASE_RENEW_SECONDS")
        if self.first_retry > self.last_retry:
            raise ValueError("MILLRACE_FIRST_RETRY_SECONDS must not exceed MILLRACE_LAST_RETRY_SECONDS")
        return self
