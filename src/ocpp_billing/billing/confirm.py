"""Step 5, confirm: an event counts as billed when Lago holds it as sent and counts it.

Lago's 200 proves neither. So what Lago holds is read back and compared, and what Lago counts for the
subscription, metric and period is compared with the sum of ours and of what others sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

import msgspec
from django.db import connection

from ocpp_billing import clock
from ocpp_billing.billing.outbox import restate_sessions
from ocpp_billing.billing.rules import Reason
from ocpp_billing.lago.errors import LagoError, NotFound
from ocpp_billing.lago.wire import UsageEvent, events_equal
from ocpp_billing.log import get_logger
from ocpp_billing.sync.database import Fence, fenced_transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.directory import LagoDirectory
    from ocpp_billing.lago.wire import BillableMetric, Event, Usage

log = get_logger(__name__)

# An event that Lago took and does not show for so long was lost there (its ClickHouse store answers before
# it stores): it is sent again, to the byte the same.
LOST_AFTER = timedelta(minutes=10)
# Lago keeps milliseconds, and before v1.48 took them through a binary fraction: it may show an event a
# millisecond earlier than it was sent.
CLOCK_GRAIN = timedelta(milliseconds=2)
ROUNDINGS = {"round": ROUND_HALF_UP, "ceil": ROUND_CEILING, "floor": ROUND_FLOOR}


@dataclass(slots=True)
class ConfirmCounts:
    """What confirmation found in this run; ``open`` are accepted events that could not be confirmed yet."""

    confirmed: int = 0
    conflicts: int = 0
    open: int = 0


@dataclass(frozen=True, slots=True)
class _Group:
    """Unconfirmed events of one subscription row and billing period."""

    customer: str
    subscription: str
    lago_subscription_id: str
    period_from: datetime | None
    earliest: datetime
    latest: datetime
    pay_in_advance: bool


@dataclass(frozen=True, slots=True)
class _Accepted:
    """One unconfirmed event."""

    event_id: int
    session_id: int
    event: UsageEvent
    accepted_at: datetime


def confirm_events(
    source: str, client: LagoClient, directory: LagoDirectory, settle: timedelta, fence: Fence | None
) -> ConfirmCounts:
    """Confirm accepted events whose settle delay is over.

    Raises:
        LagoError: when Lago cannot be asked at all; a problem of one subscription is logged and left open.
    """
    counts = ConfirmCounts()
    metric = directory.metric()
    if metric is None:
        counts.open = sum(
            len(_read_accepted(source, group, clock.now())) for group in _groups(source, settle, directory)
        )
        return counts
    for group in _groups(source, settle, directory):
        try:
            _confirm_group(source, group, client, directory, metric, settle, counts, fence)
        except NotFound as error:
            log.warning(
                "cannot confirm", action="confirm.failed", subscription=group.subscription, error=str(error)
            )
            counts.open += len(_read_accepted(source, group, clock.now() - settle))
    return counts


def _confirm_group(
    source: str,
    group: _Group,
    client: LagoClient,
    directory: LagoDirectory,
    metric: BillableMetric,
    settle: timedelta,
    counts: ConfirmCounts,
    fence: Fence | None,
) -> None:
    accepted = _read_accepted(source, group, clock.now() - settle)
    held = {
        event.transaction_id: event
        for event in client.events(
            external_subscription_id=group.subscription,
            metric=directory.metric_code,
            timestamp_from=group.earliest - CLOCK_GRAIN,
            timestamp_to=group.latest + CLOCK_GRAIN,
        )
    }
    equal: list[_Accepted] = []
    lost: list[_Accepted] = []
    conflicts: list[tuple[_Accepted, str]] = []
    for item in accepted:
        found = held.get(item.event.transaction_id)
        if found is None:
            if item.accepted_at < clock.now() - max(settle * 10, LOST_AFTER):
                lost.append(item)
            continue
        differences = events_equal(item.event, found)
        if differences:
            conflicts.append((item, "; ".join(differences)))
        else:
            equal.append(item)
    if conflicts:
        _hold(conflicts, fence)
        counts.conflicts += len(conflicts)
    if lost:
        _send_again(lost, fence)
    if group.pay_in_advance:
        equal = [item for item in equal if _is_charged(item, client, directory)]
    elif equal and not _lago_counts_it(source, group, client, directory, metric):
        equal = []
    if equal:
        _confirm(equal, fence)
        counts.confirmed += len(equal)
    counts.open += len(accepted) - len(equal) - len(conflicts)


def _is_charged(item: _Accepted, client: LagoClient, directory: LagoDirectory) -> bool:
    """Whether Lago made a fee of exactly this event, where the plan charges in advance."""
    fees = client.fees(
        external_subscription_id=item.event.external_subscription_id,
        event_transaction_id=item.event.transaction_id,
        metric=directory.metric_code,
    )
    sent = Decimal(item.event.properties[item.event.value_field])
    return any(fee.units == sent for fee in fees)


def _lago_counts_it(
    source: str, group: _Group, client: LagoClient, directory: LagoDirectory, metric: BillableMetric
) -> bool:
    """Whether what Lago counts for the period is what we sent plus what others sent."""
    usage = _usage(group, client, directory.metric_code)
    if usage is None:
        return False
    compared = compare_usage(source, group.subscription, usage, client, directory, metric)
    if compared is None:
        return False
    if compared.others_kwh is not None:
        log.info(
            "usage compared",
            action="confirm.compare",
            subscription=group.subscription,
            counted=str(compared.counted_kwh),
            ours_wh=compared.ours_wh,
            others=str(compared.others_kwh),
            matches=compared.agrees,
        )
    return compared.agrees


@dataclass(frozen=True, slots=True)
class Comparison:
    """What Lago counts in one billing period of a subscription, against what it was sent.

    Attributes:
        counted_kwh: by Lago, after its rounding.
        ours_wh: events of this source that Lago took, corrections included.
        others_kwh: what others sent; None = not asked for, because ours alone explain the count.
        agrees: the count is explained.
    """

    counted_kwh: Decimal
    ours_wh: int
    others_kwh: Decimal | None
    agrees: bool


def compare_usage(
    source: str,
    subscription: str,
    usage: Usage,
    client: LagoClient,
    directory: LagoDirectory,
    metric: BillableMetric,
) -> Comparison | None:
    """Compare what Lago counts with what was sent; None where the usage has no line of the metric.

    Args:
        source: name of the StEvE.
        subscription: Lago's external subscription id.
        usage: of one billing period.
        client: asked for the events of others when ours alone do not explain the count.
        directory: knows the metric's code and field.
        metric: says how Lago rounds.
    """
    lines = usage.of_metric(directory.metric_code)
    if not lines:
        return None
    counted = lines[0].units
    ours_wh = _sent_wh(source, subscription, usage)
    if counted == _rounded(Decimal(ours_wh) / 1000, metric):
        return Comparison(counted, ours_wh, None, agrees=True)
    others = _others_kwh(source, subscription, client, directory, usage)
    agrees = counted == _rounded(max(Decimal(ours_wh) / 1000 + others, Decimal(0)), metric)
    return Comparison(counted, ours_wh, others, agrees)


def _usage(group: _Group, client: LagoClient, metric_code: str) -> Usage | None:
    """Lago's count of the period the group lies in: the current one, or an invoiced one."""
    try:
        current = client.current_usage(group.customer, group.subscription, metric_code)
        if current.from_datetime <= group.earliest <= current.to_datetime:
            return current
    except LagoError as error:
        if not isinstance(error, NotFound):
            log.info("no current usage", action="confirm.usage", error=str(error))
    for past in client.past_usage(group.customer, group.subscription, metric_code):
        if past.from_datetime <= group.earliest <= past.to_datetime:
            return past
    return None


def _rounded(quantity: Decimal, metric: BillableMetric) -> Decimal:
    """A quantity as Lago shows it: rounded as the metric says, once, after adding up."""
    rounding = ROUNDINGS.get(metric.rounding_function or "")
    if rounding is None:
        return quantity
    return quantity.quantize(Decimal(1).scaleb(-(metric.rounding_precision or 0)), rounding=rounding)


def _others_kwh(
    source: str, subscription: str, client: LagoClient, directory: LagoDirectory, usage: Usage
) -> Decimal:
    """What others sent to this subscription, metric and period: every event that is not ours."""
    events = client.events(
        external_subscription_id=subscription,
        metric=directory.metric_code,
        timestamp_from=usage.from_datetime,
        timestamp_to=usage.to_datetime,
    )
    field = directory.field_name
    prefix = f"steve:{source}:"
    return sum(
        (quantity_of(event, field) for event in events if not event.transaction_id.startswith(prefix)),
        Decimal(0),
    )


def quantity_of(event: Event, field: str | None) -> Decimal:
    """What Lago sums of an event, by the metric's field; 0 where it is no number that it understands."""
    value = (event.properties or {}).get(field or "")
    try:
        quantity = Decimal(str(value))
    except ArithmeticError:
        return Decimal(0)
    return quantity if quantity.is_finite() else Decimal(0)


# -- the ledger's side --------------------------------------------------------------------------------


def _groups(source: str, settle: timedelta, directory: LagoDirectory) -> list[_Group]:
    with connection.cursor() as cursor:
        cursor.execute(_GROUPS, {"source": source, "settled": clock.now() - settle})
        rows = cursor.fetchall()
    charges = directory.charges_of_plans({row[-1] for row in rows if row[-1] is not None})
    return [
        _Group(
            customer,
            subscription,
            lago_subscription_id,
            period_from,
            earliest,
            latest,
            plan in charges and charges[plan].pay_in_advance,
        )
        for customer, subscription, lago_subscription_id, period_from, earliest, latest, plan in rows
    ]


def _read_accepted(source: str, group: _Group, settled: datetime) -> list[_Accepted]:
    with connection.cursor() as cursor:
        cursor.execute(
            _ACCEPTED,
            {
                "source": source,
                "row": group.lago_subscription_id,
                "earliest": group.earliest,
                "latest": group.latest,
                "period_from": group.period_from,
                "settled": settled,
            },
        )
        return [
            _Accepted(
                event_id,
                session_id,
                UsageEvent(**msgspec.json.decode(payload), value_field=field_name),
                accepted_at,
            )
            for event_id, session_id, payload, field_name, accepted_at in cursor.fetchall()
        ]


def _sent_wh(source: str, subscription: str, usage: Usage) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            _SENT,
            {
                "source": source,
                "subscription": subscription,
                "from": usage.from_datetime,
                "to": usage.to_datetime,
            },
        )
        (energy_wh,) = cursor.fetchone()
        return int(energy_wh)


def _confirm(items: Sequence[_Accepted], fence: Fence | None) -> None:
    with fenced_transaction("confirm", fence) as cursor:
        cursor.execute(
            "UPDATE usage_event SET state = 'confirmed', confirmed_at = %s"
            " WHERE id = ANY(%s) AND state = 'accepted'",
            [clock.now(), [item.event_id for item in items]],
        )
        restate_sessions(cursor, sorted({item.session_id for item in items}))


def _send_again(items: Sequence[_Accepted], fence: Fence | None) -> None:
    """Back into the queue; it is read back before it is sent."""
    with fenced_transaction("send again", fence) as cursor:
        cursor.execute(
            "UPDATE usage_event SET state = 'queued', accepted_at = NULL, next_attempt_at = %s, answer = %s"
            " WHERE id = ANY(%s) AND state = 'accepted'",
            [
                clock.now(),
                '{"outcome": "vanished", "says": "Lago took it and does not show it"}',
                [item.event_id for item in items],
            ],
        )
        restate_sessions(cursor, sorted({item.session_id for item in items}))


def _hold(conflicts: Sequence[tuple[_Accepted, str]], fence: Fence | None) -> None:
    with fenced_transaction("confirm conflict", fence) as cursor:
        for item, says in conflicts:
            answer: dict[str, Any] = {"outcome": "conflict", "says": says}
            cursor.execute(
                "UPDATE usage_event SET state = 'held', reason = %s, answer = %s"
                " WHERE id = %s AND state = 'accepted'",
                [str(Reason.CONFLICT_IN_LAGO), msgspec.json.encode(answer).decode(), item.event_id],
            )
        restate_sessions(cursor, sorted({item.session_id for item, _ in conflicts}))


_GROUPS = """
SELECT e.external_customer_id, e.external_subscription_id, e.lago_subscription_id, e.period_from,
    min(e.timestamp), max(e.timestamp), max(s.plan_code)
FROM usage_event e LEFT JOIN lago_subscription s ON s.lago_id = e.lago_subscription_id
WHERE e.source_id = %(source)s AND e.state = 'accepted' AND e.accepted_at <= %(settled)s
GROUP BY 1, 2, 3, 4 ORDER BY 2, 5
"""

_ACCEPTED = """
SELECT id, session_id, payload, field_name, accepted_at FROM usage_event
WHERE source_id = %(source)s AND state = 'accepted' AND accepted_at <= %(settled)s
  AND lago_subscription_id = %(row)s AND timestamp BETWEEN %(earliest)s AND %(latest)s
  AND period_from IS NOT DISTINCT FROM %(period_from)s
ORDER BY id
"""

_SENT = """
SELECT coalesce(sum(energy_wh), 0) FROM usage_event
WHERE source_id = %(source)s AND external_subscription_id = %(subscription)s
  AND state IN ('accepted', 'confirmed') AND timestamp BETWEEN %(from)s AND %(to)s
"""
