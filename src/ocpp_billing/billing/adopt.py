"""After our own database was restored: what Lago holds of ours comes back into the ledger.

A ledger that lost its latest part would send again what Lago already has. The ids are the same, so Lago's
PostgreSQL store would refuse them; but a session that changed meanwhile, and the ClickHouse store, would
be billed twice. So delivery stops as soon as Lago shows an event of this source that the ledger does not
know, until its events have been read back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
from django.db import connection, transaction

from ocpp_billing import clock
from ocpp_billing.accounts import audit
from ocpp_billing.billing import control
from ocpp_billing.billing.models import Decision, DeliveryControl, UsageEvent
from ocpp_billing.billing.outbox import hold_differences
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.effects import effect
from ocpp_billing.lago.wire import UsageEvent as EventToSend
from ocpp_billing.lago.wire import events_equal, timestamp_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocpp_billing.config import Config
    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.wire import Event

# Newest events looked at in every run; at first use of a ledger all of them are.
LOOK_AT = 100
PAUSE_REASON = (
    f"{control.UNKNOWN_EVENTS}, such as {{example}}. Was the "
    "database restored from a backup, or is another installation using STEVE_SOURCE={source}? After a "
    "restore run: ocpp-billing adopt"
)


@dataclass(slots=True)
class Adoption:
    """What reading back brought.

    Attributes:
        seen: events of this source that Lago holds.
        adopted: of those, how many the ledger did not know or did not know to be sent.
        conflicts: ids under which Lago and the ledger hold different events; they are held.
        orphans: ids of events whose session StEvE does not show; nothing can be billed twice by them.
        turned_up: ids of events that were given up as never billed, and are in Lago; they count nowhere.
    """

    seen: int = 0
    adopted: int = 0
    conflicts: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    turned_up: list[str] = field(default_factory=list)


def look_for_unknown_events(config: Config, lago: LagoClient) -> str | None:
    """An event of this source that Lago holds and the ledger does not know; None when there is none.

    Looks at the newest events; at all of them as long as this ledger has never sent anything.
    """
    source = config.steve_source
    # Restored to a time before LAGO_METRIC_CODE was changed, the ledger lacks what was sent for the old one.
    sent = UsageEvent.objects.filter(source=source, attempts__gt=0).order_by("-id")
    latest_code = sent.values_list("metric_code", flat=True).first()
    looked_at = DeliveryControl.objects.filter(source=source, history_checked_at__isnull=False).exists()
    whole_history = latest_code is None and not looked_at
    for code in dict.fromkeys([config.lago_metric_code, latest_code or config.lago_metric_code]):
        unknown = _look_under(code, source, lago, whole_history=whole_history)
        if unknown is not None:
            return unknown
    if whole_history:
        with effect("db commit history checked"):
            DeliveryControl.objects.filter(source=source).update(history_checked_at=clock.now())
    return None


def _look_under(code: str, source: str, lago: LagoClient, *, whole_history: bool) -> str | None:
    batch: list[str] = []
    for number, event in enumerate(lago.events(metric=code, per_page=LOOK_AT), 1):
        if event.transaction_id.startswith(f"steve:{source}:"):
            batch.append(event.transaction_id)
        if number % LOOK_AT == 0:
            unknown = _unknown(batch)
            if unknown or not whole_history:
                return unknown
            batch = []
    return _unknown(batch)


def _unknown(transaction_ids: list[str]) -> str | None:
    known = set(
        UsageEvent.objects.filter(transaction_id__in=transaction_ids, attempts__gt=0).values_list(
            "transaction_id", flat=True
        )
    )
    return next((name for name in transaction_ids if name not in known), None)


def pause_where_history_is_unknown(config: Config, lago: LagoClient) -> None:
    """Stop delivery when Lago knows more of this source than the ledger does.

    Raises:
        ControlError: then.
    """
    unknown = look_for_unknown_events(config, lago)
    if unknown is not None:
        reason = PAUSE_REASON.format(example=unknown, source=config.steve_source)
        control.pause(config, by=control.BY_ITSELF, reason=reason)
        raise control.ControlError(reason)


def adopt_events(config: Config, lago: LagoClient, *, by: str, say: Callable[[str], None]) -> Adoption:
    """Read all events of this source back from Lago into the ledger.

    The sessions must have been read from StEvE before (a synchronization with delivery paused). Safe to
    repeat, and to interrupt.

    Args:
        config: the settings.
        lago: asked for all events of the metric.
        by: who does it, for the audit.
        say: told how it gets on.
    """
    adoption = Adoption()
    for field_name, event in _events_of_source(config, lago):
        adoption.seen += 1
        with effect("db commit adopt"), transaction.atomic():
            _adopt(config.steve_source, event, field_name, adoption)
        if adoption.seen % 1000 == 0:
            say(f"{adoption.seen} events read back, {adoption.adopted} of them adopted")
    with effect("db commit adopted"), transaction.atomic():
        DeliveryControl.objects.filter(source=config.steve_source).update(history_checked_at=clock.now())
        audit.record(
            "delivery.adopt",
            actor=by,
            target=f"source:{config.steve_source}",
            after={
                "seen": adoption.seen,
                "adopted": adoption.adopted,
                "orphans": len(adoption.orphans),
                "turned_up": len(adoption.turned_up),
            },
        )
    return adoption


def _events_of_source(config: Config, lago: LagoClient) -> Iterator[tuple[str, Event]]:
    """All events of this source, each with the property that holds its kWh; of all metrics it ever sent for.

    Raises:
        ControlError: when Lago knows no such metric, or it is not known which property that is: what is
            not read back, or adopted as nothing, would be billed once more.
    """
    prefix = f"steve:{config.steve_source}:"
    sent = UsageEvent.objects.filter(source=config.steve_source, attempts__gt=0)
    latest = sent.order_by("metric_code", "-id").distinct("metric_code")
    fields: dict[str, str | None] = {config.lago_metric_code: None}
    fields |= dict(latest.values_list("metric_code", "field_name"))
    for code, last_sent in fields.items():
        metric = lago.metric(code)
        if metric is None and last_sent is None:
            raise control.ControlError(
                f"LAGO_METRIC_CODE is {code}, which Lago does not have and nothing was sent for: nothing can "
                "be read back by it. Set the code that the events were sent for, then adopt again."
            )
        field_name = (metric and metric.field_name) or last_sent
        for event in lago.events(metric=code, per_page=500):
            if event.transaction_id.startswith(prefix):
                if field_name is None:
                    raise control.ControlError(
                        f"Lago holds usage events of metric {code} and does not say which of their "
                        "properties it sums. Put the metric back in Lago, then adopt again."
                    )
                yield field_name, event


def _adopt(source: str, event: Event, field_name: str, adoption: Adoption) -> None:
    known = UsageEvent.objects.filter(transaction_id=event.transaction_id).first()
    if known is None:
        session, n = _session_of(source, event.transaction_id)
        if session is None:
            adoption.orphans.append(event.transaction_id)
            return
        _insert(session, n, event, field_name)
        adoption.adopted += 1
        return
    # The session first, as decisions lock it.
    ChargingSession.objects.select_for_update().get(pk=known.session_id)
    known = UsageEvent.objects.select_for_update().get(pk=known.pk)
    if known.given_up_at is not None:
        # Lago's invoice was final without it, and its energy is billed or held by another event.
        known.turned_up_at = known.turned_up_at or clock.now()
        known.save(update_fields=["turned_up_at"])
        adoption.turned_up.append(event.transaction_id)
        return
    if known.state not in {"queued", "void"}:
        return
    sent = EventToSend.from_payload(known.payload, known.field_name)
    differences = events_equal(sent, event)
    known.lago_event_id, known.lease, known.lease_until = event.lago_id, None, None
    if differences and known.attempts:
        known.state, known.reason = "held", "conflict_in_lago"
        known.answer = {"outcome": "conflict", "says": "; ".join(differences)}
        adoption.conflicts.append(event.transaction_id)
    else:
        if differences:
            # Decided anew since the restore and never sent: the one in Lago was sent before it.
            for name, value in _as_held(event, field_name).items():
                setattr(known, name, value)
        known.state, known.reason, known.accepted_at = "accepted", None, clock.now()
        known.answer = {"outcome": "adopted"}
        adoption.adopted += 1
    known.attempts = max(known.attempts, 1)
    known.first_attempt_at = known.first_attempt_at or clock.now()
    known.save()
    _hold_difference(known.session_id)


def _session_of(source: str, transaction_id: str) -> tuple[ChargingSession | None, int]:
    """The session that an id was made of, and the part: steve:<source>:<steve id>-<8 hex>:<n>."""
    match = re.fullmatch(rf"steve:{re.escape(source)}:([0-9]+)-([0-9a-f]{{8}}):([0-9]+)", transaction_id)
    if match is None:
        return None, 0
    candidates = ChargingSession.objects.select_for_update().filter(source=source, steve_id=int(match[1]))
    for session in candidates:
        if bytes(session.fingerprint)[:4].hex() == match[2]:
            return session, int(match[3])
    return None, 0


def _insert(session: ChargingSession, n: int, event: Event, field_name: str) -> None:
    """An event that only Lago remembers: what it says there is what was sent."""
    held = _as_held(event, field_name)
    decision = Decision.objects.create(
        session=session,
        revision=session.revision,
        outcome="bill",
        says="read back from Lago after a restore",
        energy_wh=held["energy_wh"],
        external_customer_id=held["external_customer_id"],
        external_subscription_id=held["external_subscription_id"],
        decided_at=clock.now(),
        decided_by="adopt",
    )
    UsageEvent.objects.create(
        source_id=session.source_id,
        session=session,
        decision=decision,
        n=n,
        transaction_id=event.transaction_id,
        kind="original" if n == 1 else "correction",
        state="accepted",
        attempts=1,
        first_attempt_at=clock.now(),
        accepted_at=clock.now(),
        lago_event_id=event.lago_id,
        answer={"outcome": "adopted"},
        **held,
    )
    _hold_difference(session.pk)


def _as_held(event: Event, field_name: str) -> dict[str, Any]:
    """What an event in Lago says, as columns of a usage event."""
    properties = {name: str(value) for name, value in (event.properties or {}).items()}
    subscription = event.external_subscription_id or ""
    row = _row_of(subscription)
    payload = {
        "transaction_id": event.transaction_id,
        "code": event.code,
        "external_subscription_id": subscription,
        "timestamp": timestamp_text(event.at) if event.at else event.timestamp,
        "properties": properties,
    }
    return {
        "external_customer_id": row[1],
        "external_subscription_id": subscription,
        "lago_subscription_id": row[0],
        "metric_code": event.code or "",
        "field_name": field_name,
        "energy_wh": int(Decimal(properties.get(field_name) or "0") * 1000),
        "timestamp": event.at or clock.now(),
        "payload": msgspec.json.encode(payload).decode(),
    }


def _row_of(subscription: str) -> tuple[str, str]:
    """(Lago's id, customer) of the subscription as last read; empty where it is unknown by now."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT lago_id, external_customer_id FROM lago_subscription WHERE external_id = %s"
            " ORDER BY status = 'active' DESC, started_at DESC LIMIT 1",
            [subscription],
        )
        row = cursor.fetchone()
        return ("", "") if row is None else (str(row[0]), str(row[1]))


def _hold_difference(session_id: int) -> None:
    with connection.cursor() as cursor:
        hold_differences(cursor, [session_id])
