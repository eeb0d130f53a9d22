"""The operator process: what starts in which order, and in which order it stops.

A standby waits for the Lease with everything built and nothing watched. The leader lists, watches, works; it stops by finishing
the passes that run, releasing the Lease, and only then ending, so that the next leader need not wait.
"""

import asyncio
import datetime
import logging
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Coroutine

from millrace_operator.autoscale import Tempo
from millrace_operator.cluster import Cluster
from millrace_operator.connection import ApiError, Conflict, Connection, NamespaceEnds, NotFound, configuration
from millrace_operator.desired import Platform
from millrace_operator.drift import Repairs
from millrace_operator.events import Recorder
from millrace_operator.handlers import watch
from millrace_operator.lease import Leadership, LeaseObject, NotLeader, Term
from millrace_operator.load import LoadReader
from millrace_operator.load_monitor import LoadMonitor
from millrace_operator.metrics import Metrics
from millrace_operator.names import LEASE
from millrace_operator.optional_kinds import OptionalKinds
from millrace_operator.probes import Probes
from millrace_operator.reconcile import Reconciler
from millrace_operator.release import RELEASE
from millrace_operator.rivals import Rivals
from millrace_operator.settings import OperatorSettings
from millrace_operator.view import Key
from millrace_operator.workqueue import Pace, RetryLater, TokenBucket, WorkQueue
from millrace_server.settings import DEFAULT_PROMETHEUS_PORT

logger = logging.getLogger(__name__)

STOP_SECONDS = 4
"""What a running pass has to end after SIGTERM."""
BLIND_SECONDS = 30
"""Until the next full list while some kind cannot be listed, and at most while none can."""
RELIST_PAUSE = 1
"""Several watches that begin anew at the same time cause one list."""
LAG_INTERVAL = 0.1


class Operator:
    """One process's worth of parts."""

    def __init__(self, settings: OperatorSettings, connection: Connection) -> None:
        self._settings = settings
        self._connection = connection
        self._stop = asyncio.Event()
        self._relisted = asyncio.Event()
        self._listed = asyncio.Event()
        self._looked_at: float | None = None
        term = Term(duration=settings.lease_duration, renew_deadline=settings.lease_renew_deadline, retry=settings.lease_retry)
        lease = LeaseObject(connection, namespace=settings.lease_namespace, name=LEASE, term=term)
        identity = f"{settings.identity}_{uuid.uuid4().hex[:8]}"
        self._leadership = Leadership(lease, identity, term, release=RELEASE, on_loss=_die)
        self._queue: WorkQueue[Key] = WorkQueue(
            self._pass,
            pace=Pace(coalesce=settings.coalesce, first_retry=settings.first_retry, last_retry=settings.last_retry),
            deadline=settings.pass_deadline,
        )
        self._metrics = Metrics(
            leads=lambda: self._leadership.leads,
            outdated=lambda: self._leadership.newer is not None,
            depth=lambda: self._queue.schedule.depth,
            waited=lambda: self._queue.waited,
        )
        self._cluster = Cluster(
            connection,
            guard=self._leadership.guard,
            bucket=TokenBucket(per_second=settings.writes_per_second, burst=settings.write_burst),
            read_timeout=settings.read_timeout,
            write_timeout=settings.write_timeout,
            wrote=self._metrics.wrote,
        )
        self._reader = LoadReader(port=DEFAULT_PROMETHEUS_PORT, timeout=settings.load_timeout)
        self._monitor = LoadMonitor(
            self._reader,
            tempo=Tempo(
                up_interval=settings.scale_up_interval,
                down_interval=settings.scale_down_interval,
                down_window=settings.scale_down_window,
                stale_after=3 * settings.load_interval,
            ),
            interval=settings.load_interval,
            report_interval=settings.load_report_interval,
            call=self._queue.add,
        )
        self._metrics.follow(self._monitor.figures)
        platform = Platform(
            server_image=settings.server_image,
            redis_image=settings.redis_image,
            operator_namespace=settings.lease_namespace,
            pull_policy=settings.server_image_pull_policy,
        )
        self._optional_kinds = OptionalKinds(
            self._cluster,
            namespaces=settings.namespaces,
            interval=settings.optional_interval,
            changed=self._queue.add,
            came_or_went=self._add_all,
        )
        self._rivals = Rivals(
            self._cluster.lists, namespaces=settings.namespaces, interval=settings.rival_interval, changed=self._queue.add
        )
        self._reconciler = Reconciler(
            cluster=self._cluster,
            monitor=self._monitor,
            platform=platform,
            gauges=self._metrics.service,
            rivals=self._rivals,
            repairs=Repairs(window=settings.fight_window, pause=settings.last_retry),
            recorder=Recorder(self._cluster, identity=identity, now=_utc),
            now=lambda: _utc().strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        self._probes = Probes(port=settings.port, sick=self._sick, unable=lambda: self._leadership.unable, metrics=self._metrics.text)

    async def run(self) -> int:
        """Returns the exit code: 0 when it was told to stop."""
        port = await self._probes.start()
        logger.info("probes and metrics on port %d", port)
        self._take_signals()
        try:
            if await self._first_of(self._leadership.acquire()):
                await self._lead()
        except Exception:
            logger.exception("the operator ends")
        finally:
            await self._leadership.release()
            await asyncio.gather(self._probes.stop(), self._reader.close(), self._connection.close())
        return 0 if self._stop.is_set() else 1

    async def _lead(self) -> None:
        """Returns when it is told to stop, or when a part ends that should not: without it the others would do harm, or nothing."""
        await self._rivals.look()  # before anything is scaled
        workers = asyncio.create_task(self._queue.run(self._settings.workers))
        keeping = asyncio.create_task(self._leadership.keep())
        try:
            looking = (self._resync(), self._monitor.run(), self._optional_kinds.run(), self._rivals.run(), self._watch())
            if await self._first_of(workers, keeping, *looking, self._time_the_loop()):
                logger.error("a part that never ends has ended; the process ends with it")
        finally:
            self._queue.stop()
            await asyncio.wait([workers], timeout=STOP_SECONDS)
            keeping.cancel()

    async def _time_the_loop(self) -> None:
        while True:
            due = time.monotonic() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self._metrics.loop_lag.observe(max(0.0, time.monotonic() - due))

    async def _watch(self) -> None:
        """After the first list: kopf never looks again for a definition that was missing when it started."""
        await self._listed.wait()
        await watch(
            self._settings.namespaces,
            silence=self._settings.watch_silence,
            view=self._cluster.view,
            add=self._queue.add,
            relisted=self._relisted.set,
            started=self._take_signals,
        )

    async def _first_of(self, *work: Coroutine[None, None, None] | asyncio.Task[None]) -> bool:
        """Runs until one ends, or until the process is told to stop: False. Raises what that one raised."""
        stop = asyncio.create_task(self._stop.wait())
        tasks = [asyncio.ensure_future(each) for each in work]
        done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        # The others are left as they are: kopf needs seconds to be cancelled, and none of them writes.
        return stop not in done

    async def _pass(self, key: Key) -> None:
        outcome, began = "error", time.monotonic()
        try:
            await self._reconciler.reconcile(key)
            outcome = "ok"
        except Conflict as error:
            # What was seen is no longer so: nothing to tell, but a reason to look again, later and later while somebody writes against us.
            outcome = "conflict"
            raise RetryLater(str(error), level=logging.DEBUG) from error
        except NamespaceEnds:
            outcome = "gone"
        except (ApiError, NotLeader) as error:
            self._metrics.errors.labels(type(error).__name__).inc()
            raise RetryLater(str(error), seconds=getattr(error, "retry_after", 0)) from error
        except RetryLater as later:
            outcome = "retry"
            self._metrics.errors.labels(later.reason).inc()
            raise
        except asyncio.CancelledError:
            self._metrics.errors.labels("DeadlineExceeded").inc()
            raise
        except Exception:
            self._metrics.errors.labels("Defect").inc()
            raise
        finally:
            self._metrics.passes.labels(outcome).inc()
            self._metrics.pass_seconds.observe(time.monotonic() - began)

    async def _resync(self) -> None:
        """A full list every `resync` seconds; after a watch began anew, a list that only finds what came and went unseen."""
        everything, failures = True, 0
        self._looked_at = time.monotonic()
        while True:
            try:
                present = await self._cluster.lists.services(self._settings.namespaces)
                news = await self._cluster.refresh(self._settings.namespaces)
            except ApiError as error:
                if isinstance(error, NotFound) and self._listed.is_set():
                    raise MissingDefinition("the CustomResourceDefinition is gone; a new process waits for it") from error
                logger.warning("no full list (without the definition of InferenceServices, apply crds/ first): %s", error)
                if not self._listed.is_set():
                    self._looked_at = time.monotonic()  # nothing is stuck: there is nothing to find yet
                await asyncio.sleep(self._list_again_after(failures))
                failures += 1
                continue
            failures = 0
            self._take_stock(present, news, everything=everything)
            everything = await self._next_list_is_full()

    def _list_again_after(self, failures: int) -> float:
        """Seconds, jittered: an API server that cannot answer is not helped by being asked."""
        longest = min(self._settings.first_retry * 2.0 ** min(failures, 30), BLIND_SECONDS)
        return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing

    def _take_stock(self, present: set[Key], news: set[Key], *, everything: bool) -> None:
        # What vanished gets a pass too: it finds out whether the key has been made again since the list was taken.
        seen = self._cluster.seen
        for key in seen | present if everything else seen ^ present | news:
            self._queue.add(key)
        self._looked_at = time.monotonic()
        self._listed.set()
        self._metrics.services.set(len(present))
        self._metrics.full_list.set_to_current_time()

    def _add_all(self) -> None:
        for key in self._cluster.seen:
            self._queue.add(key)

    async def _next_list_is_full(self) -> bool:
        try:
            async with asyncio.timeout(self._settings.resync if self._cluster.sees_all else min(self._settings.resync, BLIND_SECONDS)):
                await self._relisted.wait()
        except TimeoutError:
            return True
        await asyncio.sleep(min(RELIST_PAUSE, self._settings.resync))
        self._relisted.clear()
        return False

    def _sick(self) -> str | None:
        """Looks at the loop, not at what the cluster answers: a new process would get the same answers."""
        queue, patience = self._queue, self._settings.stall
        if queue.waited > patience:
            return f"a key has waited {queue.waited:.0f} s for a worker"
        if queue.longest > self._settings.pass_deadline + patience:
            return f"a pass has run for {queue.longest:.0f} s and cannot be ended"
        if queue.fruitless > patience:
            return f"for {queue.fruitless:.0f} s no pass has come to an end"
        if self._looked_at is not None and time.monotonic() - self._looked_at > 2.5 * self._settings.resync + patience:
            return "the last full list is too old"
        return None

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)


class MissingDefinition(Exception):
    """The CRD is not installed, or was deleted."""


async def run(settings: OperatorSettings) -> int:
    """Raises NoCluster."""
    return await Operator(settings, Connection(await configuration())).run()


def _utc() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _die(_: str) -> None:
    """Not sys.exit: no handler, no pending write and no cleanup may run in a process that no longer leads."""
    sys.stderr.flush()
    os._exit(1)
