"""Step 5, confirm: an event counts as billed when Lago holds it as sent and counts it.

Lago's 200 proves neither. So what Lago holds is read back and compared, and what Lago counts for the
subscription, metric and period is compared with the sum of ours and of what others sent. What came after
the invoice of its period was final is not counted, and never will be: it is given up. What stays uncounted
for a day is told, with what Lago counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, ROUND_UP, Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from django.db import connection

from ocpp_billing import clock
from ocpp_billing.billing.late import InvoicedPeriods
from ocpp_billing.billing.outbox import give_up_events, restate_sessions
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.database import Fence, fenced_transaction, read_rows
from ocpp_billing.energy import say_kwh
from ocpp_billing.lago.delivery import SHOWN_WITHIN
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.lago.errors import LagoError, NotFound
from ocpp_billing.lago.money import say_money
from ocpp_billing.lago.wire import UsageEvent, events_equal
from ocpp_billing.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.wire import BillableMetric, Event, Fee, Usage

log = get_logger(__name__)

# An event that Lago took and does not show for so long was lost there: the same bytes are sent again.
LOST_AFTER = SHOWN_WITHIN
# Lago charges in advance by a job after storing; where it made no fee for so long, the job was lost.
CHARGED_WITHIN = timedelta(days=1)
# Lago keeps milliseconds, and before v1.48 took them through a binary fraction: it may show an event a
# millisecond earlier than it was sent.
CLOCK_GRAIN = timedelta(milliseconds=2)
# Lago shows the last instant of a period in whole seconds.
LAST_SECOND = timedelta(milliseconds=999)
NOT_CHARGED = (
    "Lago holds it and has charged no fee for it, though its plan charges in advance, and charges none "
    "for it any more: look for the fee in Lago; if there is none, write an invoice by hand, then exclude it"
)
# What Lago took and does not count for so long, somebody has to look after: most delays are over by then.
UNCOUNTED_AFTER = timedelta(days=1)
# What was told is told anew so often, when it has changed.
TOLD_AGAIN_AFTER = timedelta(days=1)
# So many events are named in a sentence.
NAMED_BESIDES = 3
# Many subscriptions have few events each: so many are written down together.
CONFIRMED_AT_ONCE = 1_000
# A subscription may have very many: so many are held in memory at a time.
COMPARED_AT_ONCE = 5_000
ROUNDINGS = {"round": ROUND_HALF_UP, "ceil": ROUND_CEILING, "floor": ROUND_FLOOR}


@dataclass(slots=True)
class ConfirmCounts:
    """What confirmation found in this run.

    ``open`` are accepted events that could not be confirmed yet, ``given_up`` those that came too late.
    """

    confirmed: int = 0
    given_up: int = 0
    conflicts: int = 0
    open: int = 0


@dataclass(frozen=True, slots=True)
class _Group:
    """Unconfirmed events of one metric, subscription row and billing period, or a part of them."""

    metric_code: str
    customer: str
    subscription: str
    lago_subscription_id: str
    period_from: datetime | None
    earliest: datetime
    latest: datetime
    plan_code: str | None


@dataclass(frozen=True, slots=True)
class _Accepted:
    """One unconfirmed event; ``told`` is why it is, ``told_at`` when, as far as that was told before.

    ``told_wh`` is what was missing then, see :class:`_Counted`.
    """

    event_id: int
    session_id: int
    event: UsageEvent
    accepted_at: datetime
    told: str | None
    told_at: datetime | None
    told_wh: int | None


class _Conflict(NamedTuple):
    """An event that Lago does not have, or has not charged, as it was sent."""

    item: _Accepted
    says: str
    reason: Reason = Reason.CONFLICT_IN_LAGO


def confirm_events(
    source: str, client: LagoClient, directory: LagoDirectory, settle: timedelta, fence: Fence | None
) -> ConfirmCounts:
    """Confirm accepted events whose settle delay is over.

    Raises:
        LagoError: when Lago cannot be asked at all; a problem of one subscription is logged and left open.
    """
    counts = ConfirmCounts()
    proved: list[_Accepted] = []
    # Usually one. After LAGO_METRIC_CODE was changed, what was sent for the old one is confirmed by that.
    directories = {directory.metric_code: directory}
    periods: dict[str, InvoicedPeriods] = {}
    for group in _groups(source, settle):
        code = group.metric_code
        of_code = directories.setdefault(code, LagoDirectory(client, code))
        metric = of_code.metric()
        if metric is None:
            counts.open += _leave_open(source, group, settle, f"Lago has no metric {code} any more", fence)
            continue
        invoiced = periods.setdefault(code, InvoicedPeriods(client, of_code))
        try:
            proved += _confirm_group(source, group, client, of_code, metric, settle, invoiced, counts, fence)
        except NotFound as error:
            log.warning(
                "cannot confirm", action="confirm.failed", subscription=group.subscription, error=str(error)
            )
            counts.open += _leave_open(source, group, settle, str(error), fence)
        except LagoError:
            _confirm(proved, counts, fence)
            raise
        if len(proved) >= CONFIRMED_AT_ONCE:
            _confirm(proved, counts, fence)
            proved = []
    _confirm(proved, counts, fence)
    return counts


def _confirm_group(
    source: str,
    group: _Group,
    client: LagoClient,
    directory: LagoDirectory,
    metric: BillableMetric,
    settle: timedelta,
    periods: InvoicedPeriods,
    counts: ConfirmCounts,
    fence: Fence | None,
) -> list[_Accepted]:
    """Settle what is not as it was sent; returns the events that Lago holds and counts."""
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
    equal, lost, differing = _sort_out(accepted, held, clock.now() - max(settle * 10, LOST_AFTER))
    uncounted, missing_wh = "Lago does not show it yet", None
    conflicts = [_Conflict(item, says) for item, says in differing]
    if conflicts:
        _hold(conflicts, fence)
        counts.conflicts += len(conflicts)
    if lost:
        _send_again(lost, fence)
    if _charges_in_advance(group, directory):
        charged, not_right = _split_by_fees(equal, client, directory)
        if not_right:
            _hold(not_right, fence)
            counts.conflicts += len(not_right)
            conflicts += not_right
        equal = charged
    elif equal:
        counted = _split_by_count(source, group, client, directory, metric, periods, equal)
        equal, uncounted, missing_wh = counted.items, counted.says, counted.missing_wh
        if counted.too_late:
            _give_up(counted.too_late, fence)
            counts.given_up += len(counted.too_late)
            late = {item.event_id for item in counted.too_late}
            accepted = [item for item in accepted if item.event_id not in late]
    settled = {item.event_id for item in [*equal, *lost, *(conflict.item for conflict in conflicts)]}
    open_yet = [item for item in accepted if item.event_id not in settled]
    _tell_uncounted(open_yet, uncounted, missing_wh, fence)
    counts.open += len(accepted) - len(equal) - len(conflicts)
    return equal


def _leave_open(source: str, group: _Group, settle: timedelta, says: str, fence: Fence | None) -> int:
    """Nothing can be said about these events, but why; returns how many they are."""
    accepted = _read_accepted(source, group, clock.now() - settle)
    _tell_uncounted(accepted, says, None, fence)
    return len(accepted)


def _sort_out(
    accepted: Sequence[_Accepted], held: Mapping[str, Event], lost_before: datetime
) -> tuple[list[_Accepted], list[_Accepted], list[tuple[_Accepted, str]]]:
    """Which events Lago holds as sent, which it has lost, and which it holds otherwise, and how."""
    equal: list[_Accepted] = []
    lost: list[_Accepted] = []
    conflicts: list[tuple[_Accepted, str]] = []
    for item in accepted:
        found = held.get(item.event.transaction_id)
        if found is None:
            if item.accepted_at < lost_before:
                lost.append(item)
            continue
        differences = events_equal(item.event, found)
        if differences:
            conflicts.append((item, "; ".join(differences)))
        else:
            equal.append(item)
    return equal, lost, conflicts


def _split_by_fees(
    items: Sequence[_Accepted], client: LagoClient, directory: LagoDirectory
) -> tuple[list[_Accepted], list[_Conflict]]:
    """Where the plan charges in advance: which events Lago charged once, and which twice, or never will.

    What is in neither list may yet be charged.
    """
    charged: list[_Accepted] = []
    conflicts: list[_Conflict] = []
    for item in items:
        fees = list(
            client.fees(
                external_subscription_id=item.event.external_subscription_id,
                event_transaction_id=item.event.transaction_id,
                metric=directory.metric_code,
            )
        )
        sent = Decimal(item.event.properties[item.event.value_field])
        if says := charged_twice(fees):
            conflicts.append(_Conflict(item, says, Reason.CHARGED_TWICE))
        elif any(fee.units == sent for fee in fees):
            charged.append(item)
        elif item.accepted_at < clock.now() - CHARGED_WITHIN:
            conflicts.append(_Conflict(item, NOT_CHARGED))
    return charged, conflicts


def charged_twice(fees: Sequence[Fee]) -> str | None:
    """That a charge made more than one fee of one event, with what is too much; None where none did. Pure.

    A plan may have several charges of the metric: each makes a fee of its own, and that is no surplus.
    """
    seen: set[str | None] = set()
    surplus: list[Fee] = []
    for fee in fees:
        if fee.lago_charge_id in seen:
            surplus.append(fee)
        seen.add(fee.lago_charge_id)
    if not surplus:
        return None
    listed = ", ".join(
        f"{fee.units:f} kWh for {say_money(fee.amount_cents, fee.amount_currency)}" for fee in fees
    )
    too_much = " and ".join(
        f"{fee.units:f} kWh, {say_money(fee.amount_cents, fee.amount_currency)}" for fee in surplus
    )
    return (
        f"Lago made {len(fees)} fees of this one event ({listed}): {too_much}, is charged too much. Write a "
        "credit note over it in Lago"
    )


class _Counted(NamedTuple):
    """Which events Lago counts, and which it never will; what is in neither is not certain yet, and why.

    ``missing_wh`` is what Lago counts too little in the whole period, below 0 too much; None = not known.
    """

    items: list[_Accepted]
    too_late: list[_Accepted]
    says: str
    missing_wh: int | None = None


def _split_by_count(
    source: str,
    group: _Group,
    client: LagoClient,
    directory: LagoDirectory,
    metric: BillableMetric,
    periods: InvoicedPeriods,
    items: list[_Accepted],
) -> _Counted:
    """Compare what Lago counts for the group's period with what it was sent.

    Normally what Lago counts for the period is what we sent plus what others sent. A final invoice that
    counts less was cut before the latest of them came.
    """
    usage = _usage(group, client, directory.metric_code)
    if isinstance(usage, str):
        return _Counted([], [], usage)
    compared = compare_usage(source, group.subscription, usage, client, directory, metric)
    if compared is None:
        says = f"Lago counts no {directory.metric_code} for {group.subscription}: does its plan charge it?"
        return _Counted([], [], says)
    if compared.events is not None:
        log.info(
            "usage compared",
            action="confirm.compare",
            subscription=group.subscription,
            counted=str(compared.counted_kwh),
            ours_wh=compared.ours_wh,
            others=str(compared.others_kwh),
            matches=compared.agrees,
        )
    if compared.agrees:
        return _Counted(items, [], "")
    says = say_difference(group.subscription, directory.metric_code, usage, compared)
    is_past = usage.lago_invoice_id is not None
    missing_wh = compared.missing_wh
    if compared.events is None or not is_past or metric.recurring:
        return _Counted([], [], says, missing_wh)
    if not periods.is_final(usage):
        return _Counted([], [], f"{says}; its invoice is not final yet", missing_wh)
    wanted = {item.event.transaction_id for item in items}
    in_invoice = counted_by_invoice(
        compared.events, wanted, compared.counted_kwh, directory.field_name, metric
    )
    if in_invoice is None:
        says = f"{says}; which of them its final invoice counts cannot be told"
        return _Counted([], [], says, missing_wh)
    return _Counted(
        [item for item in items if item.event.transaction_id in in_invoice],
        [item for item in items if item.event.transaction_id not in in_invoice],
        says,
    )


class OwnEvent(NamedTuple):
    """An event of ours that Lago lists, though the ledger does not say that Lago took it as it was sent.

    One in conflict, say, or one that was given up and arrived after all. ``state`` and ``reason`` are the
    ledger's, None where it does not know the event; ``kwh`` is what Lago has.
    """

    transaction_id: str
    kwh: Decimal
    state: str | None
    reason: str | None
    given_up: bool

    def __str__(self) -> str:
        """Its name, and how it stands in the ledger."""
        state = "given up" if self.given_up else self.state
        how = " as ".join(filter(None, (state, self.reason))) or "not in the ledger"
        return f"{self.transaction_id} ({_say_decimal(self.kwh)} kWh, {how})"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What Lago counts in one billing period of a subscription, against what it was sent.

    Attributes:
        counted_kwh: by Lago, after its rounding.
        ours_wh: events of this source that Lago took, corrections included.
        others_kwh: what others sent; None = not asked for, because ours alone explain the count.
        agrees: the count is explained.
        missing_wh: what Lago counts less than it was sent by us and others; below 0 where it counts more.
        events: what Lago holds of the period, whoever sent it; None = not asked for either.
        besides: events of ours that Lago lists and that are not in ``ours_wh``.
    """

    counted_kwh: Decimal
    ours_wh: int
    others_kwh: Decimal | None
    agrees: bool
    missing_wh: int = 0
    events: tuple[Event, ...] | None = None
    besides: tuple[OwnEvent, ...] = ()

    @property
    def besides_kwh(self) -> Decimal:
        """Energy of the events ``besides``."""
        return sum((event.kwh for event in self.besides), Decimal(0))


def say_difference(subscription: str, metric_code: str, usage: Usage, compared: Comparison) -> str:
    """What Lago counts in a period, what it was sent by us, and what by others; what is missing. Pure."""
    others = compared.others_kwh
    by_others = f"{_say_decimal(others)} kWh by others" if others else "nothing by others"
    how = "missing" if compared.missing_wh > 0 else "too many"
    return (
        f"Lago counts {_say_decimal(compared.counted_kwh)} kWh of {metric_code} for {subscription} from "
        f"{usage.from_datetime:%Y-%m-%d} to {usage.to_datetime:%Y-%m-%d}, and was sent "
        f"{say_kwh(compared.ours_wh)} kWh by us and {by_others}: {say_kwh(abs(compared.missing_wh))} kWh are "
        f"{how}{say_besides(compared)}"
    )


def say_besides(compared: Comparison) -> str:
    """What Lago lists of ours besides what it took as it was sent; empty where there is nothing. Pure."""
    if not compared.besides:
        return ""
    named = ", ".join(map(str, compared.besides[:NAMED_BESIDES]))
    more = len(compared.besides) - NAMED_BESIDES
    return (
        f"; besides, it lists {_say_decimal(compared.besides_kwh)} kWh of ours that are not settled here: "
        f"{named}{f' and {more} more' if more > 0 else ''}"
    )


def _say_decimal(kwh: Decimal) -> str:
    """With as many decimals as it has, and three at least."""
    return f"{kwh:,.3f}" if kwh == round(kwh, 3) else f"{kwh:,f}"


def compare_usage(
    source: str,
    subscription: str,
    usage: Usage,
    client: LagoClient,
    directory: LagoDirectory,
    metric: BillableMetric,
) -> Comparison | None:
    """Compare what Lago counts with what was sent; None where it does not count the metric (yet).

    Args:
        source: name of the StEvE.
        subscription: Lago's external subscription id.
        usage: of one billing period; an invoice without a line of the metric counts nothing.
        client: asked for the events of others when ours alone do not explain the count.
        directory: knows the metric's code and field.
        metric: says how Lago rounds.
    """
    lines = usage.of_metric(directory.metric_code)
    if not lines and usage.lago_invoice_id is None:
        return None
    counted = lines[0].units if lines else Decimal(0)
    ours_wh = _sent_wh(source, subscription, directory.metric_code, usage)
    if counted == rounded(Decimal(ours_wh) / 1000, metric):
        return Comparison(counted, ours_wh, None, agrees=True)
    events = tuple(
        client.events(
            external_subscription_id=subscription,
            metric=directory.metric_code,
            timestamp_from=usage.from_datetime,
            timestamp_to=usage.to_datetime + LAST_SECOND,
        )
    )
    others = _others_kwh(source, events, directory.field_name)
    sent = Decimal(ours_wh) / 1000 + others
    besides = _besides(source, subscription, directory, events)
    # What Lago lists it counts; but not in an invoice that was cut before it came.
    in_all = sent + sum((event.kwh for event in besides), Decimal(0))
    in_time = sent + sum((event.kwh for event in besides if not event.given_up), Decimal(0))
    explained = {rounded(max(kwh, Decimal(0)), metric) for kwh in (sent, in_all, in_time)}
    missing = (rounded(max(sent, Decimal(0)), metric) - counted) * 1000
    missing_wh = int(missing.to_integral_value(ROUND_UP))
    return Comparison(counted, ours_wh, others, counted in explained, missing_wh, events, besides)


def counted_by_invoice(
    events: Sequence[Event],
    wanted: Collection[str],
    counted: Decimal,
    field: str | None,
    metric: BillableMetric,
) -> frozenset[str] | None:
    """Which events a final invoice counts: those that had come when it was cut. Pure.

    Args:
        events: everything that Lago holds of the subscription, metric and period.
        wanted: transaction ids that are asked about.
        counted: what the invoice counts.
        field: the property that the metric sums.
        metric: for its rounding.

    Returns:
        Those of ``wanted`` that it counts; None where its sum does not tell for certain.
    """
    by_id = {event.transaction_id: event for event in events}
    if not by_id.keys() >= set(wanted):
        return None
    arrived: dict[datetime, list[Event]] = {}
    for event in by_id.values():
        try:
            arrived.setdefault(datetime.fromisoformat(event.created_at or ""), []).append(event)
        except ValueError:
            return None
    possible = set()
    total, before = Decimal(0), frozenset[str]()
    if counted == rounded(total, metric):
        possible.add(before)
    for _, together in sorted(arrived.items()):
        total += sum((quantity_of(event, field) for event in together), Decimal(0))
        before |= {event.transaction_id for event in together if event.transaction_id in wanted}
        if counted == rounded(max(total, Decimal(0)), metric):
            possible.add(before)
    return possible.pop() if len(possible) == 1 else None


def _usage(group: _Group, client: LagoClient, metric_code: str) -> Usage | str:
    """Lago's count of the period the group lies in: the current one, or an invoiced one; else why none."""
    at = f"{group.earliest:%Y-%m-%d %H:%M} UTC"
    none = f"Lago shows no usage of {metric_code} for {group.subscription} in a period with {at} in it"
    try:
        current = client.current_usage(group.customer, group.subscription, metric_code)
        if current.contains(group.earliest):
            return current
    except LagoError as error:
        none = f"{none}: {error}"
        if not isinstance(error, NotFound):
            log.info("no current usage", action="confirm.usage", error=str(error))
    for past in client.past_usage(group.customer, group.subscription, metric_code):
        if past.contains(group.earliest):
            return past
    return none


def rounded(quantity: Decimal, metric: BillableMetric) -> Decimal:
    """A quantity as Lago shows it: rounded as the metric says, once, after adding up."""
    rounding = ROUNDINGS.get(metric.rounding_function or "")
    if rounding is None:
        return quantity
    return quantity.quantize(Decimal(1).scaleb(-(metric.rounding_precision or 0)), rounding=rounding)


def _others_kwh(source: str, events: Sequence[Event], field: str | None) -> Decimal:
    """What others sent: every event that is not ours."""
    prefix = f"steve:{source}:"
    return sum(
        (quantity_of(event, field) for event in events if not event.transaction_id.startswith(prefix)),
        Decimal(0),
    )


def _besides(
    source: str, subscription: str, directory: LagoDirectory, events: Sequence[Event]
) -> tuple[OwnEvent, ...]:
    """Events of ours among these that the ledger does not take for sent to this subscription and taken."""
    prefix = f"steve:{source}:"
    ours = {event.transaction_id: event for event in events if event.transaction_id.startswith(prefix)}
    known = {
        name: (state, reason, given_up, is_sent)
        for name, state, reason, given_up, is_sent in read_rows(
            _OURS,
            {"names": list(ours), "subscription": subscription, "metric_code": directory.metric_code},
        )
    }
    found = []
    for name, event in ours.items():
        state, reason, given_up, is_sent = known.get(name, (None, None, False, False))
        if not is_sent:
            kwh = quantity_of(event, directory.field_name)
            found.append(OwnEvent(name, kwh, state, reason, given_up))
    return tuple(found)


def quantity_of(event: Event, field: str | None) -> Decimal:
    """What Lago sums of an event, by the metric's field; 0 where it is no number that it understands."""
    value = (event.properties or {}).get(field or "")
    try:
        quantity = Decimal(str(value))
    except ArithmeticError:
        return Decimal(0)
    return quantity if quantity.is_finite() else Decimal(0)


# -- the ledger's side --------------------------------------------------------------------------------


def _groups(source: str, settle: timedelta) -> list[_Group]:
    with connection.cursor() as cursor:
        bound: dict[str, Any] = {"source": source, "settled": clock.now() - settle, "most": COMPARED_AT_ONCE}
        cursor.execute(_GROUPS, bound)
        return [_Group(*row) for row in cursor.fetchall()]


def _charges_in_advance(group: _Group, directory: LagoDirectory) -> bool:
    if group.plan_code is None:
        return False
    charge = directory.charges_of_plans({group.plan_code}).get(group.plan_code)
    return charge is not None and charge.pay_in_advance


def _read_accepted(source: str, group: _Group, settled: datetime) -> list[_Accepted]:
    with connection.cursor() as cursor:
        cursor.execute(
            _ACCEPTED,
            {
                "source": source,
                "metric_code": group.metric_code,
                "subscription": group.subscription,
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
                UsageEvent.from_payload(payload, field_name),
                accepted_at,
                *told,
            )
            for event_id, session_id, payload, field_name, accepted_at, *told in cursor.fetchall()
        ]


def _sent_wh(source: str, subscription: str, metric_code: str, usage: Usage) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            _SENT,
            {
                "source": source,
                "metric_code": metric_code,
                "subscription": subscription,
                "from": usage.from_datetime,
                "to": usage.to_datetime + LAST_SECOND,
            },
        )
        (energy_wh,) = cursor.fetchone()
        return int(energy_wh)


def _confirm(items: Sequence[_Accepted], counts: ConfirmCounts, fence: Fence | None) -> None:
    if not items:
        return
    counts.confirmed += len(items)
    with fenced_transaction("confirm", fence) as cursor:
        cursor.execute(
            "UPDATE usage_event SET state = 'confirmed', confirmed_at = %s"
            " WHERE id = ANY(%s::bigint[]) AND state = 'accepted'",
            [clock.now(), [item.event_id for item in items]],
        )
        restate_sessions(cursor, sorted({item.session_id for item in items}))


def _tell_uncounted(
    items: Sequence[_Accepted], says: str, missing_wh: int | None, fence: Fence | None
) -> None:
    """Write down why events are not confirmed that were accepted long ago.

    Once; and again at once when Lago counts too much instead of too little, or the other way round, else
    once a day, because the words contain sums that change with every event of a subscription that has very
    many. Alerts, the portal and the doctor read it; it counts for the acceptance that it was written after.
    """
    now = clock.now()

    def is_due(item: _Accepted) -> bool:
        if item.told is None or item.told_at is None:
            return True
        if _sign(item.told_wh) != _sign(missing_wh):
            return True
        return item.told_at <= now - TOLD_AGAIN_AFTER and (item.told, item.told_wh) != (says, missing_wh)

    due = [item.event_id for item in items if item.accepted_at < now - UNCOUNTED_AFTER and is_due(item)]
    if not due:
        return
    with fenced_transaction("uncounted", fence) as cursor:
        told = {"ids": due, "says": says, "missing_wh": missing_wh, "now": now}
        cursor.execute(_TELL_UNCOUNTED, told)


def _sign(missing_wh: int | None) -> bool | None:
    return None if missing_wh is None else missing_wh > 0


def _send_again(items: Sequence[_Accepted], fence: Fence | None) -> None:
    """Back into the queue; it is read back before it is sent."""
    with fenced_transaction("send again", fence) as cursor:
        cursor.execute(
            "UPDATE usage_event SET state = 'queued', accepted_at = NULL, next_attempt_at = %s, answer = %s"
            " WHERE id = ANY(%s::bigint[]) AND state = 'accepted'",
            [
                clock.now(),
                '{"outcome": "vanished", "says": "Lago took it and does not show it"}',
                [item.event_id for item in items],
            ],
        )
        restate_sessions(cursor, sorted({item.session_id for item in items}))


def _give_up(items: Sequence[_Accepted], fence: Fence | None) -> None:
    """They came after the invoice of their period was final: their energy is decided anew."""
    give_up_events(
        [item.event_id for item in items],
        states=["accepted"],
        answer={
            "outcome": "given up",
            "says": "Lago got it after the invoice of its period was final, which does not count it",
        },
        now=clock.now(),
        fence=fence,
        in_lago=True,
    )


def _hold(conflicts: Sequence[_Conflict], fence: Fence | None) -> None:
    with fenced_transaction("confirm conflict", fence) as cursor:
        for item, says, reason in conflicts:
            answer: dict[str, Any] = {"outcome": "conflict", "says": says}
            cursor.execute(
                "UPDATE usage_event SET state = 'held', reason = %s, answer = %s"
                " WHERE id = %s AND state = 'accepted'",
                [str(reason), msgspec.json.encode(answer).decode(), item.event_id],
            )
        restate_sessions(cursor, sorted({conflict.item.session_id for conflict in conflicts}))


# By rank: events of one instant are never parted, so no two parts overlap.
_GROUPS = """
SELECT metric_code, external_customer_id, external_subscription_id, lago_subscription_id, period_from,
    min(timestamp), max(timestamp), max(plan_code)
FROM (
    SELECT e.metric_code, e.external_customer_id, e.external_subscription_id, e.lago_subscription_id,
        e.period_from, e.timestamp, s.plan_code, (rank() OVER (
            PARTITION BY
                e.metric_code, e.external_customer_id, e.external_subscription_id, e.lago_subscription_id,
                e.period_from
            ORDER BY e.timestamp
        ) - 1) / %(most)s AS part
    FROM usage_event e LEFT JOIN lago_subscription s ON s.lago_id = e.lago_subscription_id
    WHERE e.source_id = %(source)s AND e.state = 'accepted' AND e.accepted_at <= %(settled)s
) accepted
GROUP BY 1, 2, 3, 4, 5, part ORDER BY 3, 6
"""

_ACCEPTED = """
SELECT id, session_id, payload, field_name, accepted_at,
    CASE WHEN uncounted_since >= accepted_at THEN uncounted_says END, uncounted_told_at, uncounted_wh
FROM usage_event
WHERE source_id = %(source)s AND state = 'accepted' AND accepted_at <= %(settled)s
  AND external_subscription_id = %(subscription)s AND timestamp BETWEEN %(earliest)s AND %(latest)s
  AND metric_code = %(metric_code)s
  AND lago_subscription_id = %(row)s AND period_from IS NOT DISTINCT FROM %(period_from)s
ORDER BY id
"""

_TELL_UNCOUNTED = """
UPDATE usage_event SET uncounted_says = %(says)s, uncounted_wh = %(missing_wh)s, uncounted_told_at = %(now)s,
    uncounted_since = CASE WHEN uncounted_since >= accepted_at THEN uncounted_since ELSE %(now)s END
WHERE id = ANY(%(ids)s::bigint[]) AND state = 'accepted'
"""

_SENT = """
SELECT coalesce(sum(energy_wh), 0) FROM usage_event
WHERE source_id = %(source)s AND external_subscription_id = %(subscription)s
  AND metric_code = %(metric_code)s AND state IN ('accepted', 'confirmed')
  AND timestamp BETWEEN %(from)s AND %(to)s
"""

_OURS = """
SELECT transaction_id, state, reason, given_up_at IS NOT NULL,
    state IN ('accepted', 'confirmed') AND external_subscription_id = %(subscription)s
        AND metric_code = %(metric_code)s
FROM usage_event WHERE transaction_id = ANY(%(names)s::text[])
"""
