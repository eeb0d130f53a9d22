"""One pass over one InferenceService: look, decide, act, report. Always the whole wish, never "what changed"."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass

from millrace_operator import plan, status
from millrace_operator.api import InferenceService, InferenceServiceStatus, InvalidService, parse
from millrace_operator.cluster import Cluster, Key, Observed
from millrace_operator.desired import Images, children
from millrace_operator.load import LoadMonitor
from millrace_operator.plan import Outcome


def now_text() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, kw_only=True)
class Reconciler:
    cluster: Cluster
    monitor: LoadMonitor
    images: Images
    clock: Callable[[], str] = now_text
