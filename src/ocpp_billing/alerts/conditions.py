"""What a person should know about: read from the ledger and judged, never measured twice.

Everything here is derived from what runs have written down, so it does not matter which process asks, and
a restart of the worker neither forgets an outage nor begins it anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import connection
from django.db.models import F
from django.utils.translation import ngettext

from ocpp_billing.billing.control import BY_ITSELF, how_it_goes_on, read_status
from ocpp_billing.billing.models import BalanceProof, DeliveryControl, UsageEvent
from ocpp_billing.billing.uncounted import read_uncounted
from ocpp_billing.database import LITTLE_ROOM_DO, little_room
from ocpp_billing.energy import say_kwh
from ocpp_billing.sync.models import LANES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from ocpp_billing.billing.uncounted import UncountedInAll
    from ocpp_billing.config import Config
    from ocpp_billing.sync.liveness import Liveness

WORKER_GONE = "worker_gone"
CONTRACT_BROKEN = "contract_broken"
TITLES = {
    "steve_failing": "StEvE cannot be read",
    "steve_unauthorised": "StEvE refuses our credentials",
    "lago_failing": "Lago cannot be used",
    "lago_unauthorised": "Lago refuses our key",
    "sync_failing": "Synchronization fails",
    CONTRACT_BROKEN: "Lago would not bill what we send",
    "delivery_paused": "Delivery has paused by itself",
    "sessions_waiting": "Sessions wait for a person",
    "events_rejected": "Lago rejected usage events",
    "not_delivered": "Usage events do not get through to Lago",
    "not_confirmed": "What Lago took cannot be confirmed",
    "events_turned_up": "Usage events that were given up are in Lago",
    "balance_unexplained": "The balance does not add up",
    "disk_low": "The disk of the database is nearly full",
    WORKER_GONE: "No worker is running",
}
# Some sessions are not billed, or something has to be looked at; all others are billed all the same.
DO_NOT_STOP_MONEY = frozenset({"sessions_waiting", "events_rejected", "not_delivered", "events_turned_up"})
# What the leader writes about, and ends: that no worker runs, others have to notice, and a leader is one.
OF_THE_LEADER = tuple(TITLES)
# So far back runs are looked at: at one every fifteen seconds, the last eight hours.
RUNS = 2000
# Whether Lago bills such an event cannot be seen from here, so it is told for as long as a month takes.
TURNED_UP_FOR = timedelta(days=31)
# An event that was first tried longer ago than that will hardly get through by itself.
DELIVERED_WITHIN = timedelta(days=1)
UNCOUNTED_DO = "Compare: ocpp-billing reconcile."
# Never more than what is missing: all other events of the period are counted.
MISSING_DO = (
    "Where Lago counts too little: look there at the subscription, at its plan's charge of the metric and "
    "its filters, and at the metric's field. They are confirmed by themselves once Lago counts what it was "
    "sent. If it never will, invoice there by hand what is missing, and only that."
)
SURPLUS_DO = (
    "Where Lago counts more than it was sent: look there for what else it counts, such as an event in "
    "conflict, one that was given up and arrived after all, or one of another sender. Invoice nothing by "
    "hand; once an invoice counts too much, write a credit note over the difference."
)
UNKNOWN_DO = (
    "Where Lago shows no count: look there at the subscription, its plan's charge and the metric. They are "
    "confirmed by themselves once Lago counts them. Before you invoice any of it by hand, see that no "
    "invoice has it."
)
WAITING_DOES_NOT_CURE = {
    "steve.Unauthorised": "steve_unauthorised",
    "steve.WrongCredentialKind": "steve_unauthorised",
    "steve.ApiDisabled": "steve_unauthorised",
    "lago.Unauthorised": "lago_unauthorised",
    "lago.Forbidden": "lago_unauthorised",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is the case.

    Attributes:
        code: one of :data:`TITLES`.
        says: what happened.
        do: what to do about it.
        size: how many sessions it is about; it is told again when there are many more. None = it is not
            about a number.
    """

    code: str
    says: str
    do: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Failing:
    """An unbroken series of runs that failed in one respect.

    Attributes:
        since: when the first of them ended.
        kind: class of the latest error, ``lago.Unreachable``.
        error: its words, which say what to do.
    """

    since: datetime
    kind: str
    error: str


def conditions(config: Config, now: datetime) -> list[Condition]:
    """Everything that is the case now, but for the worker's being gone."""
    source = config.steve_source
    outage = timedelta(minutes=config.alert_outage_minutes)
    paused = DeliveryControl.objects.filter(
        source_id=source, paused_at__isnull=False, paused_by=BY_ITSELF
    ).first()
    found = [
        judge_failing(respect, failing, now, outage)
        for respect in ("steve", "lago", "sync")
        if (failing := _failing(source, respect, paused=paused is not None)) is not None
    ]
    if paused is not None:
        found.append(
            Condition(
                "delivery_paused",
                f"Delivery paused by itself at {paused.paused_at:%Y-%m-%d %H:%M} UTC: {paused.pause_reason}",
                how_it_goes_on(paused.paused_by, paused.pause_reason)
                + " Nothing is lost meanwhile; usage events stay queued.",
            )
        )
    found += [
        _contract(source),
        _waiting(source, now - timedelta(days=config.alert_held_days), config.alert_held_days),
        _rejected(source),
        _undelivered(config, now - DELIVERED_WITHIN),
        judge_uncounted(read_uncounted(source)),
        _turned_up(source, now - TURNED_UP_FOR),
        judge_balance(BalanceProof.objects.filter(source_id=source).order_by("-id").first()),
        _disk(),
    ]
    return [condition for condition in found if condition is not None]


# -- judging: pure -------------------------------------------------------------------------------------


def judge_failing(respect: str, failing: Failing, now: datetime, outage: timedelta) -> Condition | None:
    """Whether a series of failures is worth an alert: at once where waiting does not cure it."""
    code = WAITING_DOES_NOT_CURE.get(failing.kind)
    if code is None and now - failing.since < outage:
        return None
    advice = {
        "steve": "Nothing new is read meanwhile. Check StEvE and the settings of it: ocpp-billing doctor.",
        "lago": "Usage events stay queued meanwhile. Check Lago and the settings of it: ocpp-billing doctor.",
        "sync": "Look at the run's log in the portal, and at the worker's log.",
    }
    since = f"since {failing.since:%Y-%m-%d %H:%M} UTC"
    return Condition(code or f"{respect}_failing", f"{failing.error} (failing {since})", advice[respect])


def judge_balance(proof: BalanceProof | None) -> Condition | None:
    """Whether the last full recount left anything unexplained."""
    unexplained: dict[str, Any] = {} if proof is None else proof.balance.get("unexplained", {})
    if proof is None or not any(unexplained.values()):
        return None
    return Condition(
        "balance_unexplained",
        ngettext(
            "%(n)s session and %(kwh)s kWh are unexplained in the recount of %(at)s UTC.",
            "%(n)s sessions and %(kwh)s kWh are unexplained in the recount of %(at)s UTC.",
            unexplained["sessions"],
        )
        % {
            "n": unexplained["sessions"],
            "kwh": say_kwh(unexplained["energy_wh"]),
            "at": f"{proof.proved_at:%Y-%m-%d %H:%M}",
        },
        "Pause delivery (ocpp-billing pause) and report it with the output of: ocpp-billing balance --json.",
    )


def judge_uncounted(uncounted: UncountedInAll) -> Condition | None:
    """Whether Lago took anything that cannot be confirmed."""
    if not uncounted.events:
        return None
    first = uncounted.subscriptions[0]
    more = len(uncounted.subscriptions) - 1
    return Condition(
        "not_confirmed",
        ngettext(
            "Lago accepted %(n)s usage event over a day ago, not confirmed yet: %(kwh)s kWh are at stake.",
            "Lago accepted %(n)s usage events over a day ago, not confirmed yet: %(kwh)s kWh are at stake.",
            uncounted.events,
        )
        % {"n": uncounted.events, "kwh": say_kwh(uncounted.at_stake_wh)}
        + f" {first.says.rstrip('.?')}{', and so for others' if more else ''}.",
        " ".join(
            says
            for says, wh in (
                (UNCOUNTED_DO, 1),
                (MISSING_DO, uncounted.missing_wh),
                (SURPLUS_DO, uncounted.surplus_wh),
                (UNKNOWN_DO, uncounted.unknown_wh),
            )
            if wh
        ),
        uncounted.sessions,
    )


def judge_worker(
    liveness: Liveness, now: datetime, patience: timedelta, watched_since: datetime
) -> Condition | None:
    """Whether no worker was heard of for too long; by somebody who has watched since then himself."""
    if liveness.alive or now - max(liveness.since or watched_since, watched_since) < patience:
        return None
    heard = f"since {liveness.since:%Y-%m-%d %H:%M} UTC" if liveness.since else "yet"
    return Condition(
        WORKER_GONE,
        f"No worker was heard of {heard}. Nothing is read from StEvE and nothing is sent to Lago. Nothing is "
        "lost either.",
        "Look at the worker's log (docker compose logs sync-worker), and start it: ocpp-billing worker.",
    )


# -- reading -------------------------------------------------------------------------------------------


def _failing(source: str, respect: str, *, paused: bool) -> Failing | None:
    """The latest unbroken series of runs that failed in a respect; None when the latest did not."""
    bound: dict[str, Any] = {
        "source": source,
        "runs": RUNS,
        "short": [str(trigger) for trigger in LANES],
        "paused": paused,
    }
    with connection.cursor() as cursor:
        cursor.execute(_SERIES.format(**_RESPECTS[respect]), bound)
        row = cursor.fetchone()
    return None if row is None or row[0] is None else Failing(*row)


def _contract(source: str) -> Condition | None:
    sessions, energy_wh = _count(source, ["held"], "metric_not_charged", None)
    if not sessions:
        return None
    return Condition(
        CONTRACT_BROKEN,
        ngettext(
            "%(n)s session with %(kwh)s kWh is held because Lago does not charge the metric for it.",
            "%(n)s sessions with %(kwh)s kWh are held because Lago does not charge the metric for them.",
            sessions,
        )
        % {"n": sessions, "kwh": say_kwh(energy_wh)},
        "Put the metric, its field or the plan's charge back in Lago: ocpp-billing doctor says which. They "
        "are decided anew by themselves.",
        sessions,
    )


def _waiting(source: str, before: datetime, days: int) -> Condition | None:
    sessions, energy_wh = _count(source, ["held", "stuck"], None, before)
    if not sessions:
        return None
    return Condition(
        "sessions_waiting",
        ngettext(
            "%(n)s session with %(kwh)s kWh has been held or stuck for more than %(days)s.",
            "%(n)s sessions with %(kwh)s kWh have been held or stuck for more than %(days)s.",
            sessions,
        )
        % {
            "n": sessions,
            "kwh": say_kwh(energy_wh),
            "days": ngettext("%(n)s day", "%(n)s days", days) % {"n": days},
        },
        "Resolve them in the portal, the ones with the most energy first.",
        sessions,
    )


def _rejected(source: str) -> Condition | None:
    sessions, energy_wh = _count(source, ["rejected"], None, None)
    if not sessions:
        return None
    return Condition(
        "events_rejected",
        ngettext(
            "Lago rejected usage events of %(n)s session with %(kwh)s kWh.",
            "Lago rejected usage events of %(n)s sessions with %(kwh)s kWh.",
            sessions,
        )
        % {"n": sessions, "kwh": say_kwh(energy_wh)},
        "Read Lago's words at the session in the portal, mend the cause, then “Send again” there.",
        sessions,
    )


def _undelivered(config: Config, before: datetime) -> Condition | None:
    """Events that are tried in vain since before, though delivery goes on."""
    if read_status(config).mode != "live":
        return None
    with connection.cursor() as cursor:
        cursor.execute(_UNDELIVERED, {"source": config.steve_source, "before": before})
        events, energy_wh, first_at, name, says = cursor.fetchone()
    if not events:
        return None
    return Condition(
        "not_delivered",
        ngettext(
            "%(n)s usage event with %(kwh)s kWh is tried in vain since %(at)s UTC.",
            "%(n)s usage events with %(kwh)s kWh are tried in vain, since %(at)s UTC.",
            events,
        )
        % {"n": events, "kwh": say_kwh(int(energy_wh)), "at": f"{first_at:%Y-%m-%d %H:%M}"}
        + f" The oldest is {name}: {says or 'nothing was answered'}".rstrip(".")
        + ".",
        "Look into Lago's log for it, and at a proxy before Lago. It is tried again by itself, and billed "
        "once.",
        events,
    )


def _turned_up(source: str, since: datetime) -> Condition | None:
    """Events that were given up as missing, or excluded, and are in Lago.

    Not those that were given up because they are in Lago and its final invoice does not count them.
    """
    turned_up = UsageEvent.objects.filter(source_id=source, turned_up_at__gte=since).filter(
        turned_up_at__gt=F("given_up_at")
    )
    names = list(turned_up.order_by("turned_up_at").values_list("transaction_id", flat=True))
    if not names:
        return None
    return Condition(
        "events_turned_up",
        ngettext(
            "%(n)s usage event that was given up is in Lago after all: %(names)s",
            "%(n)s usage events that were given up are in Lago after all: %(names)s",
            len(names),
        )
        % {"n": len(names), "names": ", ".join(names[:5])}
        + (", ..." if len(names) > 5 else "."),
        "Look in Lago whether an invoice counts them. If one does, write a credit note over them: their "
        "sessions were billed by another event, or excluded.",
    )


def _disk() -> Condition | None:
    """The disk is nearly full: once it is full no alert can be written any more."""
    says = little_room()
    return None if says is None else Condition("disk_low", says, LITTLE_ROOM_DO)


def _count(
    source: str, states: Sequence[str], reason: str | None, before: datetime | None
) -> tuple[int, int]:
    """Sessions in these states, and their energy in Wh, a negative one as 0."""
    bound: dict[str, Any] = {"source": source, "states": list(states), "reason": reason, "before": before}
    with connection.cursor() as cursor:
        cursor.execute(_COUNT, bound)
        sessions, energy_wh = cursor.fetchone()
    return int(sessions), int(energy_wh)


_UNDELIVERED = """
SELECT count(*), coalesce(sum(energy_wh), 0)::bigint, min(first_attempt_at),
    (array_agg(transaction_id ORDER BY first_attempt_at, id))[1],
    (array_agg(answer ->> 'says' ORDER BY first_attempt_at, id))[1]
FROM usage_event
WHERE source_id = %(source)s AND state = 'queued' AND attempts > 0 AND first_attempt_at < %(before)s
"""

# A run says something about a respect when it touched it; what failed is in its errors.
_RESPECTS = {
    "steve": {
        "touched": "trigger <> ALL(%(short)s::text[])",
        "failed": """'$[*] ? (@.kind starts with "steve.")'""",
    },
    # What stops delivery and does not pause it is Lago's, whatever its class.
    "lago": {
        "touched": "(counts ->> 'lago_calls')::bigint > 0",
        "failed": """CASE WHEN %(paused)s THEN '$[*] ? (@.kind starts with "lago.")'
            ELSE '$[*] ? (@.kind starts with "lago." || @.step == "deliver")' END""",
    },
    "sync": {
        "touched": "trigger <> ALL(%(short)s::text[])",
        "failed": """'$[*] ? (exists(@.kind) && @.step != "deliver"
            && !(@.kind starts with "steve.") && !(@.kind starts with "lago."))'""",
    },
}

_SERIES = """
WITH recent AS (
    SELECT id, ended_at, failure, touched FROM (
        SELECT id, ended_at, {touched} AS touched,
            jsonb_path_query_first(errors, ({failed})::jsonpath) AS failure
        FROM sync_run WHERE source_id = %(source)s AND ended_at IS NOT NULL
        ORDER BY id DESC LIMIT %(runs)s
    ) run WHERE touched OR failure IS NOT NULL
), series AS (
    SELECT * FROM recent
    WHERE id > coalesce((SELECT max(id) FROM recent WHERE failure IS NULL), 0)
)
SELECT min(ended_at), (array_agg(coalesce(failure ->> 'kind', '') ORDER BY id DESC))[1],
    (array_agg(failure ->> 'error' ORDER BY id DESC))[1]
FROM series
"""

_COUNT = """
SELECT count(*), coalesce(sum(greatest(energy_wh, 0)), 0)
FROM charging_session
WHERE source_id = %(source)s AND state = ANY(%(states)s::text[])
  AND state IN ('open', 'stuck', 'held', 'rejected', 'queued')
  AND (%(reason)s::text IS NULL OR reason = %(reason)s)
  AND (%(before)s::timestamptz IS NULL OR coalesce(stop_seen_at, stuck_since, first_seen_at) < %(before)s)
"""
