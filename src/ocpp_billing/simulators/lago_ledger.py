"""The simulator's own account of every event: where it was counted, or why it never will be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocpp_billing.simulators.lago_formats import (
    from_us,
    is_datetime,
    iso_milliseconds,
    iso_seconds,
    lago_uuid,
    to_us,
    units_text,
)
from ocpp_billing.simulators.lago_usage import EXACT, counted_events, exact_sum, usage_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from decimal import Decimal

    from ocpp_billing.simulators.lago_books import Books
    from ocpp_billing.simulators.lago_catalogue import Charge
    from ocpp_billing.simulators.lago_events import StoredEvent
    from ocpp_billing.simulators.lago_subscriptions import Subscription
    from ocpp_billing.simulators.lago_usage import UsageLine


def fate(books: Books, event: StoredEvent, now: datetime) -> dict[str, Any]:
    """What became of an event.

    Returns:
        ``state`` and what belongs to it:
        ``invoiced`` or ``paid_in_advance`` with ``subscription_lago_id``, ``from``, ``to`` and
        ``invoice_lago_id`` (null for a fee outside an invoice); ``open`` (in the current period, not yet
        invoiced) with the same without an invoice; ``waiting`` (its period has not begun);
        ``never`` with ``reason``.
    """
    if event.fees:
        fee = event.fees[-1]
        return {
            "state": "invoiced" if fee.event_transaction_id is None else "paid_in_advance",
            "subscription_lago_id": fee.subscription.lago_id,
            "from": iso_seconds(fee.begins),
            "to": iso_seconds(fee.ends),
            "invoice_lago_id": None if fee.invoice is None else fee.invoice.lago_id,
        }
    if event.replaced_us is not None:
        return _never("overwritten")  # charged before that, it stays charged: its successor is not
    if event.subscription is None:
        return _never("no_subscription_given")
    rows = books.by_external_id.get(event.subscription, [])
    if not rows:
        return _never("unknown_subscription")
    metric = books.catalogue.metrics.get(event.code)
    if metric is None:
        return _never("unknown_metric")
    if event.value(metric.field_name, clickhouse=books.events.clickhouse) is None:
        return _never("not_numeric")
    if not is_datetime(event.at_us):
        return _never("beyond_all_periods")
    return _fate_in_time(books, event, rows, now)


def _fate_in_time(
    books: Books, event: StoredEvent, rows: list[Subscription], now: datetime
) -> dict[str, Any]:
    at = from_us(event.at_us)
    row = books.at(rows[0].external_id, at)
    if row is None:
        started = [row.started_at for row in rows if row.started_at is not None]
        if any(row.status == "pending" and at >= row.subscription_at for row in rows):
            return {"state": "waiting"}
        if not started or at < min(started):
            return _never("before_start")
        return _never("after_termination")
    charges = row.charges_of(event.code)
    if not charges:
        return _never("metric_not_charged")
    if all(charge.pay_in_advance for charge in charges):
        return _never("not_billed_in_advance")  # the job was lost, or the transaction id was billed before
    if any(period.begins <= at <= period.ends for period in row.billed):
        return _never("period_invoiced")
    if row.status != "active" or row.due_period is None:
        return _never("after_termination")
    begins, ends = row.bounds(row.due_period)
    if at > max(ends, row.bounds(row.period_at(now))[1]):
        return {"state": "waiting"}
    if at < begins:
        return _never("period_skipped")  # back-dated over billing days that had passed
    return {
        "state": "open",
        "subscription_lago_id": row.lago_id,
        "from": iso_seconds(begins),
        "to": iso_seconds(ends),
    }


def _never(reason: str) -> dict[str, Any]:
    return {"state": "never", "reason": reason}


def event_entry(books: Books, event: StoredEvent, now: datetime) -> dict[str, Any]:
    """An event and its fate, as the ledger dump shows them."""
    metric = books.catalogue.metrics.get(event.code)
    value = None
    if metric is not None:
        value = event.value(metric.field_name, clickhouse=books.events.clickhouse)
    return {
        "lago_id": lago_uuid(0xE0, event.number),
        "transaction_id": event.transaction_id,
        "external_subscription_id": event.subscription,
        "code": event.code,
        "timestamp": iso_milliseconds(event.at_us),
        "stored_at": iso_milliseconds(event.stored_us),
        "properties": event.read_properties(),
        "units": None if value is None else units_text(value),
        "processed": event.processed,
        **fate(books, event, now),
    }


def billed_lines(books: Books, now: datetime) -> Iterator[dict[str, Any]]:
    """What each subscription row is charged per charge and period, invoiced or still open.

    Yields:
        ``external_subscription_id``, ``subscription_lago_id``, ``plan_code``, ``billable_metric_code``,
        ``charge_lago_id``, ``pay_in_advance``, ``from``, ``to``, ``invoiced``, ``units`` (Decimal,
        as Lago charges: rounded, never negative), ``signed_units`` (as summed), ``events_count``,
        ``amount_cents``. Lines without events are left out.
    """
    for row in books.subscriptions:
        for period in row.billed:
            for charge in row.plan.charges:
                lines = [fee.usage for fee in period.fees if fee.charge is charge]
                if lines:
                    yield _billed(row, charge, period.begins, period.ends, lines, invoiced=True)
        if row.status == "active" and row.due_period is not None:
            yield from _open_lines(books, row, now)
    yield from _advance_lines(books)


def _open_lines(books: Books, row: Subscription, now: datetime) -> Iterator[dict[str, Any]]:
    """The period that waits for its invoice, and the one that runs when they differ."""
    if row.due_period is None:
        return
    periods = {row.due_period, row.period_at(now)} if row.due_period.ends_at < now else {row.due_period}
    for period in sorted(periods, key=lambda period: period.starts_at):
        begins, ends = row.bounds(period)
        for charge in row.plan.charges:
            if not charge.pay_in_advance:
                lines = usage_lines(
                    charge, counted_events(books.events, row, charge, begins, ends, to_us(now))
                )
                if any(line.events_count for line in lines):
                    yield _billed(row, charge, begins, ends, lines, invoiced=False)


def _advance_lines(books: Books) -> Iterator[dict[str, Any]]:
    fees: dict[tuple[str, str, datetime], list[Any]] = {}
    for fee in books.fees:
        if fee.event_transaction_id is not None:
            fees.setdefault((fee.subscription.lago_id, fee.charge.lago_id, fee.begins), []).append(fee)
    for group in fees.values():
        first = group[0]
        lines = [fee.usage for fee in group]
        yield _billed(first.subscription, first.charge, first.begins, first.ends, lines, invoiced=True)


def _billed(
    row: Subscription,
    charge: Charge,
    begins: datetime,
    ends: datetime,
    lines: list[UsageLine],
    *,
    invoiced: bool,
) -> dict[str, Any]:
    return {
        "external_subscription_id": row.external_id,
        "subscription_lago_id": row.lago_id,
        "plan_code": row.plan.code,
        "billable_metric_code": charge.metric.code,
        "charge_lago_id": charge.lago_id,
        "pay_in_advance": charge.pay_in_advance,
        "from": iso_seconds(begins),
        "to": iso_seconds(ends),
        "invoiced": invoiced,
        "units": exact_sum(line.units for line in lines),
        "signed_units": exact_sum(line.signed_units for line in lines),
        "events_count": sum(line.events_count for line in lines),
        "amount_cents": sum(line.amount_cents for line in lines),
    }


def summary(books: Books, now: datetime) -> dict[str, Any]:
    """Totals over all subscriptions and periods; where charges share a metric only the first is counted.

    Returns:
        ``events`` stored, ``counted_events``, ``units`` (plain decimal string, kWh where the metric
        counts kWh), ``energy_wh`` (units * 1000 as an integer, fractions of a Wh cut off),
        ``amount_cents``, ``invoices``.
    """
    units: list[Decimal] = []
    counted, cents = 0, 0
    first_charges: dict[tuple[str, str], str] = {}
    for line in billed_lines(books, now):
        cents += line["amount_cents"]
        shared = (line["subscription_lago_id"], line["billable_metric_code"])
        if first_charges.setdefault(shared, line["charge_lago_id"]) != line["charge_lago_id"]:
            continue
        units.append(line["units"])
        counted += line["events_count"]
    total = exact_sum(units)
    return {
        "events": len(books.events.events),
        "counted_events": counted,
        "units": units_text(total),
        "energy_wh": int(EXACT.multiply(total, 1000)),
        "amount_cents": cents,
        "invoices": len(books.invoices),
    }
