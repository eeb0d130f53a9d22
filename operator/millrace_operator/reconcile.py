"""One pass over one InferenceService: look, decide, act, report. Always the whole wish, never "what changed"."""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from millrace_operator import status, victims
from millrace_operator.act import Outcome, act, trouble
from millrace_operator.api import AutoscalingStatus, InferenceService, InferenceServiceStatus, InvalidService, parse, parse_status
from millrace_operator.cluster import Cluster, Observed
from millrace_operator.connection import Conflict, Forbidden, NamespaceEnds
from millrace_operator.desired import Platform, children, redis_secret, runs_redis
from millrace_operator.drift import Repairs
from millrace_operator.events import Recorder, news, repaired, scaled
from millrace_operator.load_monitor import LoadMonitor, subject
from millrace_operator.manifest import Manifest
from millrace_operator.metrics import ServiceFigures, ServiceGauges
from millrace_operator.names import redis
from millrace_operator.rivals import Rivals
from millrace_operator.rollout import Trouble
from millrace_operator.view import Key
from millrace_operator.workqueue import RetryLater

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reconciler:
    cluster: Cluster
    monitor: LoadMonitor
    platform: Platform
    gauges: ServiceGauges
    repairs: Repairs
    rivals: Rivals
    recorder: Recorder
    now: Callable[[], str]
    """RFC 3339, for people; nothing is decided by it."""
    clock: Callable[[], float] = time.monotonic

    async def reconcile(self, key: Key) -> None:
        """Raises RetryLater or ApiError for what only time or another's action can heal."""
        seen = await self.cluster.observe(key)
        if seen is None or "deletionTimestamp" in seen.manifest["metadata"]:
            self.monitor.forget(key)
            self.gauges.forget(key)
            self.repairs.forget(*key)
            return
        try:
            service = parse(seen.manifest)
        except InvalidService as problem:
            self.monitor.forget(key)
            await self._report(key, seen, status.report_invalid(seen.manifest, problem=str(problem), now=self.now()))
            return
        if service.paused:
            self.monitor.forget(key)
            await self._report(key, seen, status.report_paused(service, now=self.now()))
            return
        wish, secret = children(service, platform=self.platform), _first_secret(service, seen)
        outcome = await act(self.cluster, wish, seen, self.repairs, secret=secret, now=self.clock())
        await self.recorder.tell(seen.manifest, (repaired(*each) for each in outcome.repaired))
        words, unscaled = await self._scale(key, service, outcome)
        facts = status.Facts(
            service=service,
            rollout=outcome.rollout,
            problems=outcome.problems,
            monitoring=outcome.monitoring,
            autoscaling=words,
            unscaled=unscaled,
            redis_serves=outcome.redis_serves,
        )
        await self._report(key, seen, status.report(facts, now=self.now()))
        for each in (*outcome.problems, unscaled, outcome.monitoring):
            # A definition that comes is noticed by itself.
            if each is not None and each.cause != status.CRD_NOT_INSTALLED:
                raise RetryLater(each.sentence, reason=each.cause)

    async def _scale(self, key: Key, service: InferenceService, outcome: Outcome) -> tuple[AutoscalingStatus | None, Trouble | None]:
        """The words for the decision, and what kept it from being carried out."""
        if service.spec.autoscaling.mode == "None" or outcome.deployment is None or outcome.rollout is None:
            self.monitor.forget(key)
            return None, None
        if outcome.blind is not None:
            return service.status.autoscaling, outcome.blind
        current = outcome.rollout.wanted
        decision = self.monitor.decide(key, subject(service, outcome.rollout, rival=self.rivals.of(key)))
        if decision.desired < current:
            await self._mark(key, outcome, leaving=current - decision.desired)
        if decision.desired != current:
            try:
                await self.cluster.scale(outcome.deployment, decision.desired)
            except NamespaceEnds:
                raise
            except Forbidden as error:
                return self.monitor.tell(key, decision), replace(trouble("Deployment", service.name, error), bars_serving=False)
            self.monitor.scaled(key, before=current, after=decision.desired)
            await self.recorder.tell(outcome.service, [scaled(before=current, after=decision.desired, why=decision.sentence)])
        return self.monitor.tell(key, decision), None

    async def _mark(self, key: Key, outcome: Outcome, *, leaving: int) -> None:
        """So that the least busy replicas go. Nobody waits for it: with any other one the drain takes longer, and nothing is lost."""
        for pod, cost in victims.marks(outcome.pods, self.monitor.by_address(key), leaving=leaving):
            try:
                await self.cluster.mark(pod, victims.DELETION_COST, cost)
            except (Conflict, Forbidden) as error:
                logger.warning("pod %s is not marked to go first or later: %s", pod["metadata"]["name"], error)

    async def _report(self, key: Key, seen: Observed, report: InferenceServiceStatus) -> None:
        if (wish := status.as_manifest(report)) != seen.manifest.get("status"):
            await self.cluster.write_status(seen.manifest, wish)
            self.monitor.told(key)
            await self.recorder.tell(seen.manifest, news(parse_status(seen.manifest.get("status")), report))
        self.gauges.tell(key, _figures(seen, report))


def _figures(seen: Observed, report: InferenceServiceStatus) -> ServiceFigures:
    ready = next((each for each in report.conditions if each.type == "Ready"), None)
    deployment = seen.child("Deployment", seen.manifest["metadata"]["name"])
    return ServiceFigures(
        ready=report.ready_replicas or 0,
        desired=deployment["spec"].get("replicas", 1) if deployment else 0,
        serves=ready is not None and ready.status == "True",
        reason=ready.reason if ready else "Unknown",
    )


def _first_secret(service: InferenceService, seen: Observed) -> Manifest | None:
    """Only before there is a Redis: the operator cannot look whether the Secret is there, and creates it in vain at most once per Redis."""
    if not runs_redis(service) or seen.child("Deployment", redis(service.name)):
        return None
    return redis_secret(service, password=secrets.token_hex(32), seal=secrets.token_hex(32))
