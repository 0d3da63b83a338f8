"""Figures for Prometheus, read from the ledger when they are asked for.

So every web process says the same, nothing is counted twice, and no process has to live long to know. Each
label has few values, all known beforehand. Counters that only grow are not here: runs are pruned, and what
shrinks is a gauge.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import connection
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

import ocpp_billing
from ocpp_billing import clock
from ocpp_billing.billing import control
from ocpp_billing.billing.balance import Amount, counted_balance, last_proof
from ocpp_billing.billing.uncounted import read_uncounted
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.sync.liveness import worker_alive
from ocpp_billing.sync.models import RunStatus, SyncRun

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from ocpp_billing.config import Config

PREFIX = "ocpp_billing"
ENDED = (RunStatus.COMPLETED, RunStatus.PARTIAL, RunStatus.FAILED, RunStatus.INTERRUPTED)
STEPS = ("discover", "record", "decide", "deliver", "confirm")
SYSTEMS = ("steve", "lago")
RECENT = timedelta(days=1)


def read_metrics(config: Config) -> bytes:
    """All figures of the configured source, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Ledger(config))
    return generate_latest(registry)


class _Ledger(Collector):
    def __init__(self, config: Config) -> None:
        self._config = config

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: asking the ledger just to name the figures would ask it twice."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        source, now = self._config.steve_source, clock.now()
        yield _gauge("info", "Version of OCPP Billing Sync.", {"version": ocpp_billing.__version__}, 1)
        yield from _freshness(source, now)
        yield from _delivery(self._config)
        yield from _balance(source, now)
        yield from _waiting(source, now)
        yield from _last_run(source)
        yield from _recent_runs(source, now)


def _gauge(
    name: str, text: str, labels: dict[str, str] | None = None, value: float | None = None
) -> GaugeMetricFamily:
    """A figure with one line, or with none when there is no value."""
    labels = labels or {}
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=list(labels))
    if value is not None:
        family.add_metric(list(labels.values()), value)
    return family


def _by(name: str, text: str, label: str, values: dict[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _age_s(since: datetime | None, now: datetime) -> float | None:
    return None if since is None else max((now - since).total_seconds(), 0)


def _freshness(source: str, now: datetime) -> Iterator[GaugeMetricFamily]:
    worker = worker_alive(source, now)
    yield _gauge("worker_up", "1 while a sync worker is alive.", value=int(worker.alive))
    yield _gauge(
        "worker_silent_seconds", "Since a sync worker was last heard of.", value=_age_s(worker.seen_at, now)
    )
    yield _gauge(
        "last_completed_run_age_seconds",
        "Since the last run ended that read StEvE, whatever else failed in it.",
        value=_age_s(worker.last_completed, now),
    )
    yield _gauge(
        "next_run_timestamp_seconds",
        "When the next run is planned, in seconds since 1970; missing while no worker leads.",
        value=None if worker.next_run_at is None else worker.next_run_at.timestamp(),
    )


def _delivery(config: Config) -> Iterator[GaugeMetricFamily]:
    mode = control.read_status(config).mode
    yield _by(
        "delivery_mode",
        "1 for the mode that delivery is in.",
        "mode",
        {name: int(name == mode) for name in ("live", "shadow", "paused")},
    )


def _balance(source: str, now: datetime) -> Iterator[GaugeMetricFamily]:
    balance, proof = counted_balance(source), last_proof(source)
    states = balance.states.items()
    yield _by("sessions", "Sessions by state.", "state", {name: each.sessions for name, each in states})
    yield _by("energy_wh", "Energy by state.", "state", {name: each.energy_wh for name, each in states})
    # Those of ours at 0, too, so that a line does not end when its last session is settled.
    reasons = ({code.value: Amount() for code in Reason} | balance.reasons).items()
    yield _by(
        "reason_sessions",
        "Sessions by the reason of a part.",
        "reason",
        {code: each.sessions for code, each in reasons},
    )
    yield _by(
        "reason_energy_wh",
        "Energy by the reason of its part.",
        "reason",
        {code: each.energy_wh for code, each in reasons},
    )
    yield _gauge("negative_sessions", "Sessions with negative energy.", value=balance.negative.sessions)
    yield _gauge("read_sessions", "Sessions read from StEvE.", value=balance.read.sessions)
    yield _gauge("read_energy_wh", "Energy read from StEvE.", value=balance.read.energy_wh)
    yield _gauge(
        "unexplained_sessions", "Sessions that no state accounts for.", value=balance.unexplained.sessions
    )
    yield _gauge(
        "unexplained_energy_wh", "Energy that no state accounts for.", value=balance.unexplained.energy_wh
    )
    yield _gauge("malformed_rows", "Rows of StEvE that cannot be read.", value=balance.malformed)
    yield _gauge(
        "balance_proof_age_seconds",
        "Since a full recount proved the balance.",
        value=None if proof is None else _age_s(proof.proved_at, now),
    )


_WAITING = """
SELECT (SELECT count(*) FROM usage_event WHERE source_id = %(source)s AND state = 'queued'),
       (SELECT min(next_attempt_at) FROM usage_event WHERE source_id = %(source)s AND state = 'queued'),
       (SELECT min(coalesce(stop_seen_at, first_seen_at)) FROM charging_session
        WHERE source_id = %(source)s AND state = 'held'),
       (SELECT min(stuck_since) FROM charging_session WHERE source_id = %(source)s AND state = 'stuck'),
       (SELECT min(accepted_at) FROM usage_event WHERE source_id = %(source)s AND state = 'accepted')
"""


def _waiting(source: str, now: datetime) -> Iterator[GaugeMetricFamily]:
    with connection.cursor() as cursor:
        cursor.execute(_WAITING, {"source": source})
        queued, due_at, held_since, stuck_since, accepted_at = cursor.fetchone()
    yield _gauge("queue_length", "Usage events that wait to be sent.", value=queued)
    yield _gauge(
        "queue_oldest_overdue_seconds",
        "How long the longest waiting usage event could have been sent.",
        value=_age_s(due_at, now),
    )
    yield _gauge(
        "held_oldest_age_seconds", "Since the longest held session was seen.", value=_age_s(held_since, now)
    )
    yield _gauge(
        "stuck_oldest_age_seconds",
        "Since the longest stuck session is stuck.",
        value=_age_s(stuck_since, now),
    )
    uncounted = read_uncounted(source)
    yield _gauge(
        "accepted_oldest_age_seconds",
        "Since Lago took the oldest usage event that it is not known to count.",
        value=_age_s(accepted_at, now),
    )
    yield _gauge(
        "uncounted_events",
        "Usage events that Lago took more than a day ago and that cannot be confirmed.",
        value=uncounted.events,
    )
    yield _gauge(
        "uncounted_energy_wh",
        "What Lago counts too little or too much of what it was sent; where it shows no count, all of it.",
        value=uncounted.at_stake_wh,
    )


def _last_run(source: str) -> Iterator[GaugeMetricFamily]:
    run = (
        SyncRun.objects.filter(source_id=source, status__in=ENDED, started_at__isnull=False)
        .order_by("-id")
        .first()
    )
    calls: dict[str, float] = {}
    steps: dict[str, float] = {}
    took_s = None
    if run is not None:
        took_s = _took_s(run)
        calls = {system: run.counts.get(f"{system}_calls", 0) for system in SYSTEMS}
        steps = {
            step.name: _took_s(step)
            for step in run.steps.all()
            if step.name in STEPS and step.ended_at is not None
        }
    yield _gauge("last_run_duration_seconds", "How long the last ended run took.", value=took_s)
    yield _by("last_run_calls", "HTTP calls of the last ended run.", "system", calls)
    yield _by("last_run_step_duration_seconds", "How long each step of it took.", "step", steps)


def _took_s(what: Any) -> float:
    return 0.0 if what.ended_at is None else float((what.ended_at - what.started_at).total_seconds())


_RECENT = """
SELECT status, count(*), coalesce(sum((counts ->> 'steve_calls')::bigint), 0)::bigint,
    coalesce(sum((counts ->> 'lago_calls')::bigint), 0)::bigint
FROM sync_run WHERE source_id = %(source)s AND ended_at >= %(since)s GROUP BY status
"""


def _recent_runs(source: str, now: datetime) -> Iterator[GaugeMetricFamily]:
    with connection.cursor() as cursor:
        cursor.execute(_RECENT, {"source": source, "since": now - RECENT})
        rows = cursor.fetchall()
    ended: dict[str, float] = {status.value: 0 for status in ENDED}
    ended |= {status: number for status, number, _, _ in rows if status in ended}
    calls: dict[str, float] = {"steve": sum(row[2] for row in rows), "lago": sum(row[3] for row in rows)}
    yield _by("runs_last_day", "Runs that ended in the last 24 hours, by status.", "status", ended)
    yield _by("calls_last_day", "HTTP calls of runs that ended in the last 24 hours.", "system", calls)
