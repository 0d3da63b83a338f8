"""What the pages read. Each function is a few queries, named after the question it answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING

from django.conf import settings

from ocpp_billing.alerts.conditions import CONTRACT_BROKEN
from ocpp_billing.billing.balance import STOPPED_BETWEEN_SQL
from ocpp_billing.billing.models import DeliveryControl
from ocpp_billing.charging.models import Source
from ocpp_billing.database import read_rows
from ocpp_billing.sync.liveness import SILENT_AFTER, worker_alive
from ocpp_billing.sync.models import Alert, RunStatus, SyncRun

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from ocpp_billing.billing.balance import Balance


# -- is money flowing? ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Status:
    """Freshness and whatever stops money from flowing, of one source."""

    known_since: datetime | None
    synced_at: datetime | None
    running_since: datetime | None
    next_run_at: datetime | None
    worker_seen_at: datetime | None
    worker_alive: bool
    live_from: datetime | None
    paused_at: datetime | None
    paused_by: str
    pause_reason: str
    # What Lago would not bill, since when; empty when the contract holds.
    contract_says: str = ""
    contract_do: str = ""
    contract_since: datetime | None = None
    # What people are alerted of and is not over.
    alerts: tuple[Alert, ...] = ()

    @property
    def shadow(self) -> bool:
        """Everything is read and decided, nothing is sent."""
        return self.live_from is None


def read_status(source: str, now: datetime) -> Status:
    """Read freshness, worker, delivery and contract in six small queries."""
    known_since = Source.objects.filter(name=source).values_list("created_at", flat=True).first()
    running = SyncRun.objects.filter(source_id=source, status=RunStatus.RUNNING).first()
    worker = worker_alive(source, now)
    control = DeliveryControl.objects.filter(source_id=source).first()
    alerts = open_alerts(source)
    broken = next((alert for alert in alerts if alert.condition == CONTRACT_BROKEN), None)
    return Status(
        known_since=known_since,
        synced_at=worker.last_completed,
        running_since=running.started_at if running else None,
        next_run_at=worker.next_run_at,
        worker_seen_at=worker.seen_at,
        worker_alive=worker.alive,
        live_from=settings.CONFIG.billing_start_at or (control.live_from if control else None),
        paused_at=control.paused_at if control else None,
        paused_by=(control.paused_by or "") if control else "",
        pause_reason=(control.pause_reason or "") if control else "",
        contract_says=broken.says if broken else "",
        contract_do=broken.do if broken else "",
        contract_since=broken.opened_at if broken else None,
        alerts=tuple(alerts),
    )


def open_alerts(source: str) -> list[Alert]:
    """What people are alerted of and is not over, the oldest first."""
    return list(Alert.objects.filter(source_id=source, resolved_at=None).order_by("opened_at", "pk"))


# Whatever a page shows comes with one of these: a run, its steps and log, a decision, an event, an act of a
# person. Primary keys only, so that it costs the same at a million sessions. While a run is under way
# deliveries change rows in place: then time itself is part of the mark.
_MARK = """
SELECT (SELECT string_agg(id || status || coalesce(ended_at::text, ''), ',') FROM (
            SELECT id, status, ended_at FROM sync_run WHERE source_id = %(source)s ORDER BY id DESC LIMIT 3
        ) run),
       (SELECT max(id) FROM sync_log), (SELECT max(id) FROM sync_step),
       (SELECT max(id) FROM charging_session), (SELECT max(id) FROM decision),
       (SELECT max(id) FROM usage_event), (SELECT max(id) FROM audit_entry),
       (SELECT max(updated_at) FROM tag_mapping),
       (SELECT string_agg(id::text, ',' ORDER BY id) FROM alert
        WHERE source_id = %(source)s AND resolved_at IS NULL),
       (SELECT row(live_from, paused_at, pause_reason)::text FROM delivery_control
        WHERE source_id = %(source)s),
       (SELECT bool_or(seen_at > now() - %(silent_after)s) FROM worker_heartbeat
        WHERE source_id = %(source)s AND kind = 'worker' AND stopped_at IS NULL),
       CASE WHEN EXISTS (SELECT FROM sync_run WHERE source_id = %(source)s AND status = 'running')
            THEN floor(extract(epoch FROM clock_timestamp()) / 4) END
"""


def change_mark(source: str) -> str:
    """A text that differs when a page of this source may show something new."""
    return repr(read_rows(_MARK, {"source": source, "silent_after": SILENT_AFTER})[0])


# -- the dashboard --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sessions that need a person, by state and reason, and since when the first of them waits."""

    state: str
    reason: str | None
    sessions: int
    energy_wh: int
    # Stuck sessions have no energy in the ledger; this is what their meters last said, where they did.
    evidence_wh: int
    since: datetime | None

    @property
    def at_stake_wh(self) -> int:
        """What to rank by."""
        return self.energy_wh + self.evidence_wh


# Since when the first waits, and what the meters of stuck sessions last said: the counters know neither.
_WAITING = """
SELECT state, reason, min(coalesce(stop_seen_at, stuck_since, first_seen_at)),
    (coalesce(sum(greatest((evidence ->> 'stop_wh')::bigint - start_wh, 0)) FILTER (WHERE state = 'stuck'), 0)
    )::bigint
FROM charging_session WHERE source_id = %(source)s AND state IN ('held', 'rejected', 'stuck')
GROUP BY state, reason
"""


def attention_groups(source: str, balance: Balance) -> list[AttentionGroup]:
    """What needs a person, most energy at stake first.

    Sessions and energy are the counters of the balance: they add up to the table beside them, but for the
    sessions that are not decided yet: those need a run and no person.
    """
    waiting = {
        (state, reason): (since, evidence_wh)
        for state, reason, since, evidence_wh in read_rows(_WAITING, {"source": source})
    }
    groups = []
    for (state, reason), amount in balance.parts.items():
        if amount and state in {"held", "rejected", "stuck"} and reason != "undecided":
            since, evidence_wh = waiting.get((state, reason), (None, 0))
            groups.append(
                AttentionGroup(state, reason, amount.sessions, amount.energy_wh, evidence_wh, since)
            )
    return sorted(groups, key=lambda group: (-group.at_stake_wh, -group.sessions, group.reason or ""))


@dataclass(frozen=True, slots=True)
class Period:
    """Transactions that stopped within a period, and their energy (a negative one counts 0)."""

    sessions: int
    energy_wh: int


_PERIODS = f"""
SELECT count(*) FILTER (WHERE coalesce(s.reading_stopped_at, s.stopped_at) >= %(today)s),
       coalesce(sum(greatest(s.energy_wh, 0))
           FILTER (WHERE coalesce(s.reading_stopped_at, s.stopped_at) >= %(today)s), 0)::bigint,
       count(*),
       coalesce(sum(greatest(s.energy_wh, 0)), 0)::bigint
FROM charging_session s WHERE s.source_id = %(source)s AND {STOPPED_BETWEEN_SQL}
"""


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """The first instant of a day in a zone."""
    return datetime.combine(day, time(), tzinfo=zone)


def monday(now: datetime, zone: ZoneInfo) -> date:
    """The day on which this week began."""
    today = now.astimezone(zone).date()
    return today - timedelta(days=today.weekday())


def today_and_week(source: str, now: datetime, zone: ZoneInfo) -> tuple[Period, Period]:
    """Transactions that stopped today, and since Monday, in ``zone``."""
    today = now.astimezone(zone).date()
    bound = {
        "source": source,
        "today": midnight(today, zone),
        "to": midnight(today + timedelta(days=1), zone),
        "from": midnight(monday(now, zone), zone),
    }
    ((sessions, energy_wh, week_sessions, week_wh),) = read_rows(_PERIODS, bound)
    return Period(sessions, energy_wh), Period(week_sessions, week_wh)


@dataclass(frozen=True, slots=True)
class MappingCount:
    """Tags that have a mapping which is not over, and those whose mapping is active right now."""

    total: int
    active: int


_MAPPINGS = """
SELECT count(DISTINCT mapping.id_tag_id),
       count(DISTINCT mapping.id_tag_id) FILTER (WHERE mapping.active AND mapping.valid_from <= %(now)s)
FROM tag_mapping mapping JOIN id_tag ON id_tag.id = mapping.id_tag_id
WHERE id_tag.source_id = %(source)s AND (mapping.valid_to IS NULL OR mapping.valid_to > %(now)s)
"""


def count_mappings(source: str, now: datetime) -> MappingCount:
    """Mappings, counted by tag: the intervals of one tag's history are one mapping."""
    ((total, active),) = read_rows(_MAPPINGS, {"source": source, "now": now})
    return MappingCount(total, active)


_DAYS = """
SELECT (stopped_at AT TIME ZONE %(zone)s)::date, state, sum(energy_wh)::bigint FROM (
    SELECT stopped_at, rest_state AS state, rest_wh AS energy_wh
    FROM charging_session
    WHERE source_id = %(source)s AND stopped_at >= %(since)s AND stopped_at < %(until)s
      AND rest_state IS NOT NULL
    UNION ALL
    SELECT session.stopped_at, event.state, event.energy_wh
    FROM usage_event event JOIN charging_session session ON session.id = event.session_id
    WHERE session.source_id = %(source)s AND session.stopped_at >= %(since)s
      AND session.stopped_at < %(until)s AND event.state <> 'void'
) part
GROUP BY 1, 2
"""


def energy_by_day(
    source: str, now: datetime, zone: ZoneInfo, days: int
) -> tuple[list[date], dict[date, dict[str, int]]]:
    """Wh by day of the stop and state, for the last ``days`` days and today among them, in ``zone``."""
    today = now.astimezone(zone).date()
    calendar = [today - timedelta(days=back) for back in range(days - 1, -1, -1)]
    bound = {
        "source": source,
        "zone": zone.key,
        "since": midnight(calendar[0], zone),
        "until": midnight(today + timedelta(days=1), zone),
    }
    energies_wh: dict[date, dict[str, int]] = {}
    for day, state, energy_wh in read_rows(_DAYS, bound):
        energies_wh.setdefault(day, {})[state] = energy_wh
    return calendar, energies_wh


def recent_runs(source: str, limit: int) -> list[SyncRun]:
    """The newest runs first."""
    return list(SyncRun.objects.filter(source_id=source).order_by("-id")[:limit])
