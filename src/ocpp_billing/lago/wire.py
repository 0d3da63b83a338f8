"""Lago's JSON as typed values, both ways. No HTTP here.

Answers are read leniently in what we do not need (unknown fields are ignored, fields that some version
from v1.30 to v1.51 lacks are None) and strictly in what money depends on: quantities are
:class:`~decimal.Decimal` and finite, never float, and a time without a time zone is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence  # noqa: TC003 - msgspec resolves annotations at run time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ocpp_billing.lago.errors import Unsendable

Instant = Annotated[datetime, Meta(tz=True)]
SubscriptionStatus = Literal["pending", "active", "terminated", "canceled", "incomplete"]
# ``incomplete`` is unknown to older Lago, where an unknown status turns the filter off: all rows come.


class Answer(Struct, frozen=True, kw_only=True):
    """Base of everything that Lago answers: immutable, unknown fields ignored."""


# -- what Lago is ------------------------------------------------------------------------------------


class Health(Answer, frozen=True, kw_only=True):
    """``GET /health``, which needs no key. ``version`` looks like ``v1.51.0``."""

    version: str | None = None
    message: str | None = None


class OrganizationBilling(Answer, frozen=True, kw_only=True):
    """Part of :class:`Organization`. The grace period is in days and honoured with a licence only."""

    invoice_grace_period: int | None = None


class Organization(Answer, frozen=True, kw_only=True):
    """The organisation that the API key belongs to. ``events_store`` is known since v1.47.0."""

    lago_id: str
    name: str | None = None
    timezone: str | None = None
    default_currency: str | None = None
    events_store: str | None = None
    billing_configuration: OrganizationBilling | None = None

    @property
    def grace_period_days(self) -> int:
        """Days between a period's end and its invoice being final; 0 where Lago names none."""
        billing = self.billing_configuration
        return (billing.invoice_grace_period or 0) if billing else 0


class MetricFilter(Answer, frozen=True, kw_only=True):
    """A property by whose values a metric may be priced."""

    key: str
    values: tuple[str, ...] = ()


class BillableMetric(Answer, frozen=True, kw_only=True):
    """How Lago turns events into a quantity. ``field_name`` is None for ``count_agg``."""

    lago_id: str
    code: str
    name: str | None = None
    aggregation_type: str
    field_name: str | None = None
    recurring: bool = False
    rounding_function: str | None = None
    rounding_precision: int | None = None
    expression: str | None = None
    weighted_interval: str | None = None
    filters: tuple[MetricFilter, ...] | None = None


class ChargeFilter(Answer, frozen=True, kw_only=True):
    """A price of its own for events whose properties have these values."""

    invoice_display_name: str | None = None
    values: dict[str, Any] | None = None
    properties: dict[str, Any] | None = None


class Charge(Answer, frozen=True, kw_only=True):
    """A plan's price on a billable metric. ``code`` exists since charges have codes of their own."""

    lago_id: str
    billable_metric_code: str
    lago_billable_metric_id: str | None = None
    code: str | None = None
    charge_model: str
    pay_in_advance: bool = False
    invoiceable: bool | None = None
    prorated: bool | None = None
    min_amount_cents: int | None = None
    properties: dict[str, Any] | None = None
    filters: tuple[ChargeFilter, ...] | None = None


class Plan(Answer, frozen=True, kw_only=True):
    """What a subscription pays."""

    lago_id: str
    code: str
    name: str | None = None
    interval: str
    amount_cents: int | None = None
    amount_currency: str | None = None
    pay_in_advance: bool | None = None
    bill_charges_monthly: bool | None = None
    charges: tuple[Charge, ...] = ()

    def charges_on(self, metric_code: str) -> tuple[Charge, ...]:
        """The charges of this plan on one billable metric."""
        return tuple(charge for charge in self.charges if charge.billable_metric_code == metric_code)


class Customer(Answer, frozen=True, kw_only=True):
    """Who is invoiced. Only ``external_id`` is sure to be there to call them by."""

    lago_id: str
    external_id: str
    name: str | None = None
    firstname: str | None = None
    lastname: str | None = None
    legal_name: str | None = None
    email: str | None = None
    currency: str | None = None
    timezone: str | None = None
    applicable_timezone: str | None = None
    created_at: Instant | None = None

    @property
    def label(self) -> str:
        """What a person would call the customer: name, first and last name, legal name, external id."""
        full_name = " ".join(part for part in (self.firstname, self.lastname) if part)
        return self.name or full_name or self.legal_name or self.external_id


class Subscription(Answer, frozen=True, kw_only=True):
    """One row of a subscription. An external id may have several rows: an upgrade makes a new one."""

    lago_id: str
    external_id: str
    external_customer_id: str
    lago_customer_id: str | None = None
    plan_code: str
    status: str
    name: str | None = None
    billing_time: str | None = None
    created_at: Instant | None = None
    subscription_at: Instant | None = None
    started_at: Instant | None = None
    ending_at: Instant | None = None
    terminated_at: Instant | None = None
    canceled_at: Instant | None = None
    current_billing_period_started_at: Instant | None = None
    current_billing_period_ending_at: Instant | None = None
    previous_plan_code: str | None = None
    next_plan_code: str | None = None


# -- what Lago counted -------------------------------------------------------------------------------


class UsageCharge(Answer, frozen=True, kw_only=True):
    """Which charge a line of usage belongs to."""

    lago_id: str
    code: str | None = None
    charge_model: str | None = None


class UsageMetric(Answer, frozen=True, kw_only=True):
    """Which billable metric a line of usage belongs to."""

    code: str
    lago_id: str | None = None
    aggregation_type: str | None = None


class ChargeUsage(Answer, frozen=True, kw_only=True):
    """Usage of one charge in one period.

    ``units`` is after Lago's rounding; ``events_count`` counts only events whose value Lago understood.
    Charges that share a metric each show that metric's usage: do not add them up.
    """

    units: Decimal
    total_aggregated_units: Decimal | None = None
    events_count: int | None = None
    amount_cents: int | None = None
    charge: UsageCharge
    billable_metric: UsageMetric

    def __post_init__(self) -> None:
        _require_finite(self.units, self.total_aggregated_units)


class Usage(Answer, frozen=True, kw_only=True):
    """Usage of one subscription in one billing period, open (current) or invoiced (past)."""

    from_datetime: Instant
    to_datetime: Instant
    currency: str | None = None
    amount_cents: int | None = None
    total_amount_cents: int | None = None
    lago_invoice_id: str | None = None
    charges_usage: tuple[ChargeUsage, ...] = ()

    def of_metric(self, metric_code: str) -> tuple[ChargeUsage, ...]:
        """The lines of one billable metric."""
        return tuple(line for line in self.charges_usage if line.billable_metric.code == metric_code)

    def contains(self, at: datetime) -> bool:
        """Whether an event of that time falls into the period; Lago cuts its last instant to the second."""
        return self.from_datetime <= at < self.to_datetime + _SECOND


# An invoice in one of these counts no further usage; a draft is worked out anew until it is final.
FINAL_INVOICES: Final = frozenset({"finalized", "voided"})


class Invoice(Answer, frozen=True, kw_only=True):
    """An invoice, as far as it says whether it is final."""

    lago_id: str
    status: str

    @property
    def is_final(self) -> bool:
        """Whether usage that arrives now can no longer be counted by it."""
        return self.status in FINAL_INVOICES


class FeeItem(Answer, frozen=True, kw_only=True):
    """What a fee is for; ``code`` is the billable metric's where ``type`` is ``charge``."""

    type: str
    code: str | None = None


class Fee(Answer, frozen=True, kw_only=True):
    """A line that was charged. With ``event_transaction_id`` it is the proof of one event paid in advance."""

    lago_id: str | None = None
    lago_charge_id: str | None = None
    lago_invoice_id: str | None = None
    external_customer_id: str | None = None
    external_subscription_id: str | None = None
    event_transaction_id: str | None = None
    units: Decimal
    events_count: int | None = None
    amount_cents: int
    amount_currency: str | None = None
    pay_in_advance: bool = False
    payment_status: str | None = None
    created_at: Instant | None = None
    item: FeeItem | None = None

    def __post_init__(self) -> None:
        _require_finite(self.units)


class Event(Answer, frozen=True, kw_only=True):
    """A usage event as Lago holds it, ours or another sender's.

    ``lago_id`` is null or no UUID on the ClickHouse store. ``external_subscription_id`` may be null in
    events that others sent. Numbers inside ``properties`` are int or Decimal. ``timestamp`` is kept as
    text because Lago takes milliseconds for seconds: one such event of another sender, in the year
    55840, must not make the list unreadable.
    """

    transaction_id: str
    code: str | None = None
    external_subscription_id: str | None = None
    timestamp: str
    properties: dict[str, Any] | None = None
    lago_id: str | None = None
    created_at: str | None = None

    @property
    def at(self) -> datetime | None:
        """The event's time, or None where it is beyond what a calendar holds."""
        try:
            return msgspec.convert(self.timestamp, Instant)
        except msgspec.ValidationError:
            return None


def _require_finite(*quantities: Decimal | None) -> None:
    """Refuse NaN and infinity, which Decimal would take from a string.

    Raises:
        ValueError: which msgspec reports as a malformed answer.
    """
    if any(quantity is not None and not quantity.is_finite() for quantity in quantities):
        raise ValueError("a quantity is not a finite number")


# -- envelopes ---------------------------------------------------------------------------------------


class PageMeta(Answer, frozen=True, kw_only=True):
    """Where a page lies in its list. ``current_page`` is 0 when the list is empty."""

    current_page: int = 0
    next_page: int | None = None
    total_pages: int | None = None
    total_count: int | None = None


Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """One page of a list, with its place in it."""

    rows: tuple[Row, ...]
    meta: PageMeta


class OrganizationEnvelope(Answer, frozen=True, kw_only=True):
    """Answer of ``GET /organizations``."""

    organization: Organization


class BillableMetricEnvelope(Answer, frozen=True, kw_only=True):
    """Answer with one billable metric."""

    billable_metric: BillableMetric


class PlanEnvelope(Answer, frozen=True, kw_only=True):
    """Answer with one plan."""

    plan: Plan


class CustomerEnvelope(Answer, frozen=True, kw_only=True):
    """Answer with one customer."""

    customer: Customer


class InvoiceEnvelope(Answer, frozen=True, kw_only=True):
    """Answer with one invoice."""

    invoice: Invoice


class EventEnvelope(Answer, frozen=True, kw_only=True):
    """Answer with one event."""

    event: Event


class CurrentUsageEnvelope(Answer, frozen=True, kw_only=True):
    """Answer of ``GET /customers/{id}/current_usage``."""

    customer_usage: Usage


class PlanList(Answer, frozen=True, kw_only=True):
    """A page of plans."""

    plans: tuple[Plan, ...]
    meta: PageMeta = PageMeta()


class CustomerList(Answer, frozen=True, kw_only=True):
    """A page of customers."""

    customers: tuple[Customer, ...]
    meta: PageMeta = PageMeta()


class SubscriptionList(Answer, frozen=True, kw_only=True):
    """A page of subscriptions."""

    subscriptions: tuple[Subscription, ...]
    meta: PageMeta = PageMeta()


class EventList(Answer, frozen=True, kw_only=True):
    """A page of events."""

    events: tuple[Event, ...]
    meta: PageMeta = PageMeta()


class FeeList(Answer, frozen=True, kw_only=True):
    """A page of fees."""

    fees: tuple[Fee, ...]
    meta: PageMeta = PageMeta()


class PastUsageList(Answer, frozen=True, kw_only=True):
    """A page of invoiced periods."""

    usage_periods: tuple[Usage, ...]
    meta: PageMeta = PageMeta()


# -- what we create ----------------------------------------------------------------------------------


class NewMetric(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A billable metric to create. Filters are ``{"key": ..., "values": [...]}``."""

    name: str
    code: str
    aggregation_type: str
    field_name: str | UnsetType = UNSET
    recurring: bool | UnsetType = UNSET
    rounding_function: str | UnsetType = UNSET
    rounding_precision: int | UnsetType = UNSET
    expression: str | UnsetType = UNSET
    filters: Sequence[Mapping[str, Any]] | UnsetType = UNSET


class NewCharge(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A charge of a plan to create. ``properties`` of the standard model: ``{"amount": "0.39"}``."""

    billable_metric_id: str
    charge_model: str
    properties: Mapping[str, Any]
    pay_in_advance: bool | UnsetType = UNSET
    invoiceable: bool | UnsetType = UNSET
    code: str | UnsetType = UNSET
    filters: Sequence[Mapping[str, Any]] | UnsetType = UNSET


class NewPlan(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A plan to create, with its charges."""

    name: str
    code: str
    interval: str
    amount_cents: int
    amount_currency: str
    pay_in_advance: bool
    charges: Sequence[NewCharge]


# -- events to send ----------------------------------------------------------------------------------

MAX_BATCH_EVENTS: Final = 100
"""Lago's own limit (``LAGO_EVENTS_BATCH_MAX_LENGTH``); an operator may have lowered theirs."""

_TRANSACTION_ID = re.compile(r"[A-Za-z0-9_:-]+")
# What Lago's Postgres store counts at all. ASCII digits only, no exponent, no sign but "-".
_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
# Lago takes a millisecond count for seconds without complaint (the year 55840), so the range is ours.
_TIMESTAMP = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,3})?")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST_S: Final = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp())
_LATEST_S: Final = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())
_MILLISECOND: Final = timedelta(milliseconds=1)
_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """A usage event to send, frozen: the same event is the same bytes at every attempt.

    Attributes:
        transaction_id: unique in the whole Lago organisation; characters ``[A-Za-z0-9_:-]``.
        code: of the billable metric.
        external_subscription_id: Lago matches by this text and never says when it matches nothing.
        timestamp: seconds since 1970 as a decimal string with at most milliseconds
            (:func:`timestamp_text`). Never left out: on ClickHouse it is part of the event's identity.
        properties: names to plain strings.
        value_field: the property that the metric sums.
    """

    transaction_id: str
    code: str
    external_subscription_id: str
    timestamp: str
    properties: Mapping[str, str]
    value_field: str

    @classmethod
    def from_payload(cls, payload: str, value_field: str) -> UsageEvent:
        """The event as it was frozen: the JSON of :meth:`to_payload`, and the property that it left out."""
        return cls(**msgspec.json.decode(payload), value_field=value_field)

    def to_payload(self) -> dict[str, object]:
        """As it goes over the wire: everything but the name of the summed property."""
        return {
            "transaction_id": self.transaction_id,
            "external_subscription_id": self.external_subscription_id,
            "code": self.code,
            "timestamp": self.timestamp,
            "properties": self.properties,
        }


def timestamp_text(at: datetime) -> str:
    """An instant as Lago reads it: ``"1651240791.123"``. Finer than a millisecond is cut off.

    Raises:
        ValueError: when ``at`` has no time zone or lies before 1970.
    """
    if at.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    seconds, milliseconds = divmod((at - _EPOCH) // _MILLISECOND, 1000)
    if seconds < 0:
        raise ValueError("an instant before 1970 is no time of an event")
    return f"{seconds}.{milliseconds:03d}"


def problems(event: UsageEvent) -> tuple[str, ...]:
    """The rules an event breaks, in words; empty when it may be sent.

    Lago answers 200 to most of these and then bills nothing, or breaks on them.
    """
    found = []
    if not _TRANSACTION_ID.fullmatch(event.transaction_id):
        found.append("transaction_id may hold only A-Z, a-z, 0-9, '_', ':' and '-'")
    if not event.code.strip():
        found.append("the billable metric's code is blank")
    if not event.external_subscription_id.strip():
        found.append("the subscription's external id is blank")
    if not _TIMESTAMP.fullmatch(event.timestamp):
        found.append(f"timestamp {event.timestamp!r} is not decimal seconds with at most milliseconds")
    elif not _EARLIEST_S <= int(event.timestamp.partition(".")[0]) < _LATEST_S:
        found.append(f"timestamp {event.timestamp} is not between the years 2000 and 2100 in seconds")
    value = event.properties.get(event.value_field)
    if value is None:
        found.append(f"property {event.value_field!r}, which the metric sums, is missing")
    elif not (isinstance(value, str) and _PLAIN_NUMBER.fullmatch(value)):
        found.append(f"property {event.value_field!r} is {value!r}, not a plain decimal number")
    texts = [event.code, event.external_subscription_id, *event.properties, *event.properties.values()]
    if not all(isinstance(text, str) for text in texts):
        found.append("every property must be text")
    elif not _is_storable("".join(texts)):
        found.append("a text holds a NUL or an incomplete character, which Lago cannot store")
    return tuple(found)


def encode_batch(events: Sequence[UsageEvent]) -> bytes:
    """The body of ``POST /events/batch``, in the order given.

    Raises:
        Unsendable: when an event breaks a rule, the batch is empty or longer than Lago takes, or a
            transaction id comes twice: Lago tells events of a batch apart by it alone, so such a batch
            can never succeed, not even with two subscriptions.
    """
    _require_sendable(events)
    return _encoder.encode({"events": [event.to_payload() for event in events]})


def events_equal(sent: UsageEvent, held: Event) -> list[str]:
    """How the event that Lago holds differs from the one we sent; empty when it is the same event.

    Timestamps may differ by one millisecond: Lago before v1.48 went through binary floating point and
    may show the millisecond below. Properties that Lago holds beyond ours are no difference: a metric
    with an expression adds its result.
    """
    differences = [
        f"{name}: sent {ours!r}, Lago holds {theirs!r}"
        for name, ours, theirs in (
            ("transaction_id", sent.transaction_id, held.transaction_id),
            ("code", sent.code, held.code),
            ("external_subscription_id", sent.external_subscription_id, held.external_subscription_id),
        )
        if ours != theirs
    ]
    held_at = held.at
    if held_at is None or abs(_EPOCH + _milliseconds(sent.timestamp) - held_at) > _MILLISECOND:
        differences.append(f"timestamp: sent {sent.timestamp}, Lago holds {held.timestamp}")
    held_properties = held.properties or {}
    for name, ours in sent.properties.items():
        if name not in held_properties:
            differences.append(f"{name}: sent {ours!r}, Lago holds nothing")
        elif not _same_value(ours, held_properties[name], is_quantity=name == sent.value_field):
            differences.append(f"{name}: sent {ours!r}, Lago holds {_shown(held_properties[name])}")
    return differences


_encoder = msgspec.json.Encoder()


def _require_sendable(events: Sequence[UsageEvent]) -> None:
    broken = {index: found for index, event in enumerate(events) if (found := problems(event))}
    if not events:
        broken[-1] = ("the batch is empty",)
    elif len(events) > MAX_BATCH_EVENTS:
        broken[-1] = (f"{len(events)} events are more than the {MAX_BATCH_EVENTS} that Lago takes at once",)
    elif len({event.transaction_id for event in events}) != len(events):
        broken[-1] = ("a transaction_id comes twice",)
    if broken:
        raise Unsendable(broken)


def _is_storable(text: str) -> bool:
    """Whether Lago's database can hold it: NUL cannot be in a text, half a surrogate pair not in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


def _milliseconds(timestamp: str) -> timedelta:
    """The wire's decimal seconds as a duration since 1970, exactly."""
    return timedelta(milliseconds=int(Decimal(timestamp) * 1000))


def _same_value(ours: str, theirs: object, *, is_quantity: bool) -> bool:
    """Text is compared as it stands; the summed value, and what Lago holds as a number, as numbers."""
    if isinstance(theirs, str):
        if ours == theirs:
            return True
        if not (is_quantity and _PLAIN_NUMBER.fullmatch(theirs)):
            return False
    elif isinstance(theirs, bool) or not isinstance(theirs, (int, Decimal)):
        return False
    return bool(_PLAIN_NUMBER.fullmatch(ours)) and Decimal(ours) == Decimal(theirs)


def _shown(value: object) -> str:
    return str(value) if isinstance(value, (int, Decimal)) else repr(value)
