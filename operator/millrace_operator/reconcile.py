"""One pass over one InferenceService: look, decide, act, report. Always the whole wish, never "what changed"."""

import datetime
from dataclasses import dataclass

from millrace_operator import status
from millrace_operator.act import act
from millrace_operator.api import AutoscalingStatus, InferenceService, InferenceServiceStatus, InvalidService, parse
from millrace_operator.cluster import Cluster, Key, Observed
from millrace_operator.desired import Images, children
from millrace_operator.load import LoadMonitor, subject
from millrace_operator.manifest import Manifest
from millrace_operator.rollout import Rollout, read_rollout
from millrace_operator.workqueue import RetryLater


@dataclass(frozen=True, kw_only=True)
class Reconciler:
    cluster: Cluster
    monitor: LoadMonitor
    images: Images

    async def reconcile(self, key: Key) -> None:
        """Raises RetryLater or ApiError for what only time or another's action can heal."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        seen = await self.cluster.observe(key)
        if seen is None or "deletionTimestamp" in seen.manifest["metadata"]:
            return self.monitor.forget(key)
        try:
            service = parse(seen.manifest)
        except InvalidService as problem:
            return await self._leave_alone(key, seen, status.report_invalid(seen.manifest, problem=str(problem), now=now))
        if service.paused:
            return await self._leave_alone(key, seen, status.report_paused(service, now=now))
        outcome = await act(self.cluster, children(service, images=self.images), seen)
        rollout = read_rollout(outcome.deployment, seen.pods) if outcome.deployment else None
        words = await self._scale(key, service, outcome.deployment, rollout)
        facts = status.Facts(service=service, rollout=rollout, problems=outcome.problems, autoscaling=words)
        await self._report(key, seen, status.report(facts, now=now))
        if outcome.problems:
            raise RetryLater(outcome.problems[0].sentence)

    async def _scale(
        self, key: Key, service: InferenceService, deployment: Manifest | None, rollout: Rollout | None
    ) -> AutoscalingStatus | None:
        if service.spec.autoscaling.mode == "None" or deployment is None or rollout is None:
            self.monitor.forget(key)
            return None
        decision = self.monitor.decide(key, subject(service, rollout))
        if decision.desired != rollout.wanted:
            await self.cluster.scale(deployment, decision.desired)
            self.monitor.scaled(key, before=rollout.wanted, after=decision.desired)
        return self.monitor.tell(key, decision)

    async def _leave_alone(self, key: Key, seen: Observed, report: InferenceServiceStatus) -> None:
        self.monitor.forget(key)
        await self._report(key, seen, report)

    async def _report(self, key: Key, seen: Observed, report: InferenceServiceStatus) -> None:
        if (wish := status.as_manifest(report)) != seen.manifest.get("status"):
            await self.cluster.write_status(seen.manifest, wish)
            self.monitor.told(key)
