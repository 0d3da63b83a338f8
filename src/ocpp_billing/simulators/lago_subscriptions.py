"""Subscriptions as rows: an external id may stand for several of them over time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ocpp_billing.simulators.lago_formats import iso_milliseconds, iso_seconds, to_us
from ocpp_billing.simulators.lago_periods import Period, billing_instant, local_midnight, period_containing

if TYPE_CHECKING:
    from ocpp_billing.simulators.lago_catalogue import Charge, Customer, Plan
    from ocpp_billing.simulators.lago_usage import UsageLine

STATUSES = ("pending", "active", "terminated", "canceled", "incomplete")


@dataclass(eq=False, slots=True)
class Subscription:
    """One row. ``due_at`` is when Lago's clock has next to do something with it, or None."""

    lago_id: str
    external_id: str
    customer: Customer
    plan: Plan
    billing_time: str
    subscription_at: datetime
    created_at: datetime
    name: str | None = None
    status: str = "pending"
    started_at: datetime | None = None
    terminated_at: datetime | None = None
    canceled_at: datetime | None = None
    ending_at: datetime | None = None
    previous: Subscription | None = None
    following: Subscription | None = None
    due_period: Period | None = None
    due_at: datetime | None = None
    billed: list[BilledPeriod] = field(default_factory=list)

    def period_at(self, at: datetime) -> Period:
        """The uncut billing period around an instant."""
        zone = self.customer.zone
        return period_containing(
            at,
            interval=self.plan.interval,
            billing_time=self.billing_time,
            anchor=self.subscription_at.astimezone(zone).date(),
            zone=zone,
        )

    def bounds(self, period: Period) -> tuple[datetime, datetime]:
        """A period cut to the life of the row: its charges' first and last instant, both inclusive.

        For a row terminated before the period the first lies after the last, as in Lago's answers.
        """
        started_at = self.started_at or self.subscription_at
        begins, ends = max(period.starts_at, started_at), period.ends_at
        if self.terminated_at is not None:
            ends = min(ends, self.terminated_at)
        return begins, max(ends, started_at)

    def holds(self, at: datetime) -> bool:
        """Whether an instant lies in the life of the row."""
        if self.started_at is None or at < self.started_at:
            return False
        return self.terminated_at is None or at <= self.terminated_at

    def charges_of(self, metric_code: str) -> list[Charge]:
        """The plan's charges for a metric."""
        return [charge for charge in self.plan.charges if charge.metric.code == metric_code]

    def pending_following(self) -> Subscription | None:
        """The downgrade that waits for the period's end."""
        following = self.following
        return following if following is not None and following.status == "pending" else None

    # -- what Lago's clock does next ---------------------------------------------------------------

    def plan_first_bill(self) -> None:
        """Set the first period this row will be billed for.

        A row that is made on a billing day is billed for the period before, when it had begun by then
        (back-dated); earlier billing days are over and their periods are never billed.
        """
        started_at = self.started_at or self.subscription_at
        known_at = max(started_at, self.created_at)
        period = self.period_at(known_at)
        before = self.period_at(period.starts_at - timedelta(microseconds=1))
        begun_before = started_at.astimezone(period.zone).date() < before.billing_day
        if begun_before and billing_instant(before, known_at) is not None:
            period = before
        self._due(period)

    def plan_next_bill(self) -> None:
        """After a bill: the period that follows."""
        if self.due_period is not None:
            self._due(self.period_at(local_midnight(self.due_period.billing_day, self.due_period.zone)))

    def _due(self, period: Period) -> None:
        self.due_period = period
        self.due_at = billing_instant(period, self.created_at)
        if self.ending_at is not None and (self.due_at is None or self.ending_at < self.due_at):
            self.due_at = self.ending_at

    # -- answers -----------------------------------------------------------------------------------

    def json(self, now: datetime) -> dict[str, Any]:
        """As ``GET /subscriptions`` shows it; the current period is the one around ``now``."""
        begins = ends = None
        if self.started_at is not None:
            begins, ends = self.bounds(self.period_at(max(now, self.started_at)))
        following = self.following if self.following and self.following.status != "canceled" else None
        downgrade_on = None
        if self.pending_following() and self.due_period is not None:
            downgrade_on = self.due_period.billing_day.isoformat()
        return {
            "lago_id": self.lago_id,
            "external_id": self.external_id,
            "lago_customer_id": self.customer.lago_id,
            "external_customer_id": self.customer.external_id,
            "name": self.name,
            "plan_code": self.plan.code,
            "plan_amount_cents": self.plan.amount_cents,
            "plan_amount_currency": self.plan.amount_currency,
            "status": self.status,
            "billing_time": self.billing_time,
            "subscription_at": iso_seconds(self.subscription_at),
            "started_at": None if self.started_at is None else iso_milliseconds(to_us(self.started_at)),
            "trial_ended_at": None,
            "ending_at": iso_seconds(self.ending_at),
            "terminated_at": iso_seconds(self.terminated_at),
            "canceled_at": iso_seconds(self.canceled_at),
            "created_at": iso_seconds(self.created_at),
            "previous_plan_code": self.previous.plan.code if self.previous else None,
            "next_plan_code": following.plan.code if following else None,
            "downgrade_plan_date": downgrade_on,
            "current_billing_period_started_at": iso_seconds(begins),
            "current_billing_period_ending_at": iso_seconds(ends),
            "on_termination_credit_note": "credit",
            "on_termination_invoice": "generate",
            "progressive_billing_disabled": False,
            "consolidate_invoice": True,
        }


@dataclass(eq=False, slots=True)
class Invoice:
    """An invoice of a customer; ``periods`` are what it bills of each subscription.

    Final as soon as it is cut; a test may give it another ``status``, and what it counts stays the same.
    """

    lago_id: str
    number: str
    customer: Customer
    currency: str
    created_at: datetime
    periods: list[BilledPeriod] = field(default_factory=list)
    fees: list[Fee] = field(default_factory=list)
    status: str = "finalized"

    @property
    def fees_amount_cents(self) -> int:
        """Σ of its fees."""
        return sum(fee.amount_cents for fee in self.fees)

    @property
    def issuing_date(self) -> str:
        """The local day of the customer."""
        return self.created_at.astimezone(self.customer.zone).date().isoformat()


@dataclass(eq=False, slots=True)
class BilledPeriod:
    """What an invoice bills of one row: the charges between two instants, both inclusive."""

    subscription: Subscription
    invoice: Invoice
    begins: datetime
    ends: datetime
    fees: list[Fee] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Fee:
    """One line: units of a charge, of one filter and one group of values.

    Arrears fees stand in an invoice; a fee paid in advance belongs to one event.
    """

    lago_id: str
    subscription: Subscription
    charge: Charge
    usage: UsageLine
    begins: datetime
    ends: datetime
    created_at: datetime
    invoice: Invoice | None = None
    event_transaction_id: str | None = None

    @property
    def amount_cents(self) -> int:
        """Price of the units, rounded to cents."""
        return self.usage.amount_cents
