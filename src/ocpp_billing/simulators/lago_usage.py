"""What Lago counts: events of a charge between two instants, as units and money."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Context, Decimal, localcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

from ocpp_billing.simulators.lago_formats import to_us, units_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from ocpp_billing.simulators.lago_catalogue import Charge, Metric
    from ocpp_billing.simulators.lago_events import EventStore, Series, StoredEvent
    from ocpp_billing.simulators.lago_subscriptions import Subscription

ZERO = Decimal(0)
ROUNDINGS = {"round": ROUND_HALF_UP, "ceil": ROUND_CEILING, "floor": ROUND_FLOOR}
EXACT = Context(prec=200)  # like PostgreSQL's numeric, sums never lose a digit
Bucket = tuple[int | None, tuple[tuple[str, str | None], ...]]


@dataclass(slots=True)
class UsageLine:
    """Units of a charge in one bucket.

    ``units`` are rounded and never negative, ``signed_units`` are as summed; ``filter_index`` is the
    charge's filter that all its events match (None = the default); ``grouped_by`` the values that its
    pricing group keys split by.
    """

    signed_units: Decimal
    units: Decimal
    events_count: int
    amount_cents: int
    filter_index: int | None = None
    grouped_by: dict[str, str | None] = field(default_factory=dict)


@dataclass(slots=True)
class _Tally:
    values: list[Decimal] = field(default_factory=list)
    total: Decimal = ZERO
    count: int = 0
    precise_amount_cents: Decimal = ZERO


def counted_events(
    store: EventStore,
    subscription: Subscription,
    charge: Charge,
    begins: datetime,
    ends: datetime,
    now_us: int,
    skip: int = 0,
) -> Iterator[tuple[StoredEvent, Decimal]]:
    """The events a charge counts between two instants (inclusive), each with its number.

    A recurring metric keeps counting what came in earlier periods. ``skip`` leaves out the first
    arrivals, which the caller has counted already.
    """
    series = store.series(subscription.external_id, charge.metric.code)
    if series is None:
        return
    ends_us = to_us(ends)
    begins_us = None if charge.metric.recurring else to_us(begins)
    field_name = charge.metric.field_name
    clickhouse = store.clickhouse
    for event in islice(series.arrivals, skip, None):
        if event.at_us > ends_us or (begins_us is not None and event.at_us < begins_us):
            continue
        if clickhouse and (event.replaced_us is not None or not store.is_visible(event, now_us)):
            continue
        value = event.value(field_name, clickhouse=clickhouse)
        if value is not None:
            yield event, value


def bucket_of(charge: Charge, event: StoredEvent) -> Bucket:
    """The filter and the group of values an event falls into; an unlisted value falls to the default."""
    if not charge.filters and not charge.group_keys:
        return None, ()
    properties = event.read_properties()
    matching = [
        index
        for index, item in enumerate(charge.filters)
        if all(str(properties.get(key)) in values for key, values in item["values"].items())
    ]
    # Of several matching filters the narrowest wins.
    chosen = max(matching, key=lambda index: len(charge.filters[index]["values"]), default=None)
    groups = tuple(
        (key, None if properties.get(key) is None else str(properties[key])) for key in charge.group_keys
    )
    return chosen, groups


def is_plain_sum(charge: Charge) -> bool:
    """Whether all events fall into one bucket whose total can be carried on."""
    adds = charge.metric.aggregation_type in {"sum_agg", "count_agg"}
    return adds and charge.charge_model == "standard" and not charge.filters and not charge.group_keys


def usage_lines(
    charge: Charge, events: Iterator[tuple[StoredEvent, Decimal]], carried: UsageLine | None = None
) -> list[UsageLine]:
    """Units and money of a charge paid in arrears, one line per bucket; one empty line when nothing counts.

    Args:
        charge: what is counted for.
        events: from :func:`counted_events`.
        carried: of a plain sum, the line over the events counted before these.
    """
    tallies: dict[Bucket, _Tally] = {}
    if carried is not None:
        tallies[None, ()] = _Tally(total=carried.signed_units, count=carried.events_count)
    with localcontext(EXACT):
        _tally_up(charge, events, tallies)
        return [_line(charge, bucket, tally) for bucket, tally in (tallies or {(None, ()): _Tally()}).items()]


def _tally_up(
    charge: Charge, events: Iterator[tuple[StoredEvent, Decimal]], tallies: dict[Bucket, _Tally]
) -> None:
    simple = not charge.filters and not charge.group_keys
    keep_values = charge.metric.aggregation_type not in {"sum_agg", "count_agg"}
    for event, value in events:
        bucket: Bucket = (None, ()) if simple else bucket_of(charge, event)
        tally = tallies.get(bucket)
        if tally is None:
            tally = tallies[bucket] = _Tally()
        tally.total += value
        tally.count += 1
        if keep_values:
            tally.values.append(value)
        if event.precise_amount is not None and charge.charge_model == "dynamic":
            tally.precise_amount_cents += Decimal(event.precise_amount)


def _line(charge: Charge, bucket: Bucket, tally: _Tally) -> UsageLine:
    filter_index, groups = bucket
    signed = aggregate(charge.metric, tally.total, tally.values)
    units = max(round_units(charge.metric, signed), ZERO)
    if charge.charge_model == "dynamic":
        cents = tally.precise_amount_cents
    else:
        cents = units * charge.amount(filter_index) * 100
    return UsageLine(signed, units, tally.count, whole_cents(cents), filter_index, dict(groups))


def aggregate(metric: Metric, total: Decimal, values: list[Decimal]) -> Decimal:
    """The metric's aggregation, before rounding and clamping."""
    if metric.aggregation_type in {"sum_agg", "count_agg"}:
        return total
    if not values:
        return ZERO
    if metric.aggregation_type == "max_agg":
        return max(values)
    return Decimal(len(set(values))) if metric.aggregation_type == "unique_count_agg" else values[-1]


def round_units(metric: Metric, units: Decimal) -> Decimal:
    """Rounding of the aggregated units (not of each event)."""
    if metric.rounding_function is None:
        return units
    step = Decimal(1).scaleb(-(metric.rounding_precision or 0))
    return units.quantize(step, rounding=ROUNDINGS[metric.rounding_function])


def whole_cents(cents: Decimal) -> int:
    """Cents as billed."""
    return int(cents.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def advance_units(
    current: Decimal, highest: Decimal | None, value: Decimal
) -> tuple[Decimal, Decimal, Decimal]:
    """Units charged for one event paid in advance: what lifts the period's running total above its maximum.

    Args:
        current: running total before the event.
        highest: maximum so far, or None before the period's first event.
        value: the event's units; negative ones are charged 0 and make later ones free.

    Returns:
        Units charged, new running total, new maximum.
    """
    if highest is None:
        return max(value, ZERO), value, value
    current = EXACT.add(current, value)
    if current > highest:
        return EXACT.subtract(current, highest), current, current
    return ZERO, current, highest


def charges_usage_json(charge: Charge, lines: list[UsageLine], currency: str) -> dict[str, Any]:
    """One entry of ``charges_usage`` in current and past usage."""
    shown: dict[str, Any] = {
        **_sums(lines),
        "amount_currency": currency,
        "charge": {
            "lago_id": charge.lago_id,
            "code": charge.code,
            "charge_model": charge.charge_model,
            "invoice_display_name": charge.invoice_display_name,
        },
        "billable_metric": {
            "lago_id": charge.metric.lago_id,
            "name": charge.metric.name,
            "code": charge.metric.code,
            "aggregation_type": charge.metric.aggregation_type,
        },
        "filters": _filters_json(charge, lines),
        "grouped_usage": [],
    }
    if charge.group_keys:
        groups = {tuple(line.grouped_by.items()): line.grouped_by for line in lines if line.grouped_by}
        shown["grouped_usage"] = [
            {
                **_sums([line for line in lines if line.grouped_by == grouped_by]),
                "grouped_by": grouped_by,
                "filters": _filters_json(charge, [line for line in lines if line.grouped_by == grouped_by]),
            }
            for grouped_by in groups.values()
        ]
    return shown


def _filters_json(charge: Charge, lines: list[UsageLine]) -> list[dict[str, Any]]:
    shown = []
    for index, item in enumerate(charge.filters):
        matching = [line for line in lines if line.filter_index == index]
        if matching:
            name = (
                {"invoice_display_name": item["invoice_display_name"]} if item["invoice_display_name"] else {}
            )
            shown.append({**_sums(matching), **name, "values": item["values"]})
    return shown


def exact_sum(values: Iterable[Decimal]) -> Decimal:
    """Σ without losing a digit."""
    with localcontext(EXACT):
        return sum(values, ZERO)


def _sums(lines: list[UsageLine]) -> dict[str, Any]:
    units = exact_sum(line.units for line in lines)
    return {
        "units": units_text(units),
        "total_aggregated_units": units_text(units),
        "events_count": sum(line.events_count for line in lines),
        "amount_cents": sum(line.amount_cents for line in lines),
    }


@dataclass(slots=True)
class _CachedUsage:
    begins: datetime
    ends: datetime
    seen: int
    replaced: int
    lines: list[UsageLine]


class UsageCache:
    """Current usage is cached per charge until the job after storing expires it.

    Attributes:
        delay_us: how long after storing that job runs.
    """

    def __init__(self, store: EventStore) -> None:
        self.delay_us = 0
        self._store = store
        self._cached: dict[tuple[str, str], _CachedUsage] = {}

    def lines(
        self, subscription: Subscription, charge: Charge, begins: datetime, ends: datetime, now_us: int
    ) -> list[UsageLine]:
        """The lines as ``current_usage`` shows them now: perhaps stale."""
        key = (subscription.lago_id, charge.lago_id)
        series = self._store.series(subscription.external_id, charge.metric.code)
        cached = self._cached.get(key)
        if cached is not None and (cached.begins, cached.ends) != (begins, ends):
            cached = None
        if cached is not None and not self._is_expired(cached, series, now_us):
            return cached.lines
        skip, carried = 0, None
        if (
            cached is not None
            and series is not None
            and cached.replaced == series.replaced
            and is_plain_sum(charge)
        ):
            skip, carried = cached.seen, cached.lines[0]
        events = counted_events(self._store, subscription, charge, begins, ends, now_us, skip)
        lines = usage_lines(charge, events, carried)
        seen = 0 if series is None else self._visible_count(series, now_us)
        replaced = 0 if series is None else series.replaced
        self._cached[key] = _CachedUsage(begins, ends, seen, replaced, lines)
        return lines

    def _visible_count(self, series: Series, now_us: int) -> int:
        seen = len(series.arrivals)
        while seen and not self._store.is_visible(series.arrivals[seen - 1], now_us):
            seen -= 1
        return seen

    def _is_expired(self, cached: _CachedUsage, series: Series | None, now_us: int) -> bool:
        if series is None:
            return False
        if cached.replaced != series.replaced:
            return True
        for index in range(cached.seen, len(series.arrivals)):
            event = series.arrivals[index]
            if not self._store.is_visible(event, now_us):
                return False
            if event.processed and event.stored_us + self.delay_us <= now_us:
                return True
        return False
