"""Which subscription row of Lago bills an event, or why none does: pure, over plain records.

Lago answers 200 to almost anything and never says that an event will not be billed. So what Lago would
do with an event is worked out before it is sent, from Lago's own answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocpp_billing.charging.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from ocpp_billing.lago.wire import BillableMetric


@dataclass(frozen=True, slots=True)
class SubscriptionRow:
    """One row of Lago's subscriptions. An external id may have several: an upgrade keeps the id.

    ``period_from``/``period_to`` are Lago's current billing period of an active row, as Lago says it.
    """

    lago_id: str
    external_id: str
    external_customer_id: str
    plan_code: str
    status: str
    started_at: datetime | None
    terminated_at: datetime | None
    period_from: datetime | None
    period_to: datetime | None

    def contains(self, at: datetime) -> bool:
        """Whether the row was, is or will be in force at that instant."""
        return (
            self.status in {"active", "terminated"}
            and self.started_at is not None
            and self.started_at <= at
            and (self.terminated_at is None or at < self.terminated_at)
        )

    def is_open_for(self, at: datetime) -> bool:
        """Whether an event of that time is still to be invoiced.

        A terminated row was billed at once when it ended; an active one was billed up to the beginning of
        its current period. Where Lago does not say when that began, nothing is certain to be invoiced.
        """
        return self.status == "active" and self.period_from is not None and self.period_from <= at


@dataclass(frozen=True, slots=True)
class PlanCharge:
    """How a plan charges the metric: in arrears, or in advance per event."""

    pay_in_advance: bool


@dataclass(frozen=True, slots=True)
class Chosen:
    """The row that bills the event, and how its plan charges the metric."""

    row: SubscriptionRow
    charge: PlanCharge


@dataclass(frozen=True, slots=True)
class NotBilled:
    """Why Lago would not bill an event of that time."""

    reason: Reason
    says: str


def choose_subscription(
    rows: Sequence[SubscriptionRow],
    charges: Mapping[str, PlanCharge],
    at: datetime,
    *,
    customer: str,
    subscription: str | None,
    metric_code: str,
) -> Chosen | NotBilled:
    """Find the one subscription row that bills an event at ``at``.

    Args:
        rows: every row of the customer, in every status.
        charges: plan code -> how it charges the metric; plans that do not are absent.
        at: the event's time.
        customer: Lago's external customer id.
        subscription: the mapping's external subscription id; None = exactly one must charge the metric.
        metric_code: for the words.
    """
    candidates = [
        row
        for row in rows
        if row.external_customer_id == customer
        and (subscription is None or row.external_id == subscription)
        and row.contains(at)
    ]
    whose = f"subscription {subscription}" if subscription else f"customer {customer}"
    if not candidates:
        return NotBilled(
            Reason.NO_SUBSCRIPTION, f"{whose} has no subscription in force at {at:%F %T} UTC in Lago"
        )
    charging = [row for row in candidates if row.plan_code in charges]
    if not charging:
        plans = ", ".join(sorted({row.plan_code for row in candidates}))
        return NotBilled(
            Reason.METRIC_NOT_CHARGED, f"the plan {plans} has no charge for {metric_code}; add it in Lago"
        )
    if len(charging) > 1:
        names = ", ".join(sorted(row.external_id for row in charging))
        return NotBilled(
            Reason.AMBIGUOUS_SUBSCRIPTION,
            f"{whose} has several subscriptions that charge {metric_code} ({names}); "
            "choose one in the mapping",
        )
    (row,) = charging
    if row.status == "active" and row.period_from is None:
        return NotBilled(
            Reason.LATE_PERIOD, f"Lago does not say when the billing period of {row.external_id} began"
        )
    if not row.is_open_for(at):
        return NotBilled(
            Reason.LATE_PERIOD,
            f"the billing period of {row.external_id} that contains {at:%F %T} UTC is already invoiced",
        )
    return Chosen(row, charges[row.plan_code])


@dataclass(frozen=True, slots=True)
class MetricFault:
    """Something about a billable metric that is not as our events need it.

    Attributes:
        code: what it is.
        breaks: Lago would not bill what we send, or bill it wrongly; else it only deserves a look.
        says: what it is, in words.
        do: what to do about it, in Lago.
    """

    code: str
    breaks: bool
    says: str
    do: str


def metric_faults(metric: BillableMetric) -> list[MetricFault]:
    """What is wrong with a billable metric that is to sum the kWh of our events.

    Lago never says any of it: it takes every event and bills what it understands.
    """
    renew = (
        "A metric that is in use cannot be changed in Lago: make another one and set LAGO_METRIC_CODE to it "
        "(ocpp-billing setup-lago creates it), or correct this one while nothing uses it."
    )
    code = metric.code
    found: list[MetricFault] = []
    if metric.aggregation_type != "sum_agg":
        says = f"Metric {code} does not sum: its aggregation is {metric.aggregation_type}."
        found.append(MetricFault("metric_not_sum", True, says, renew))
    elif not metric.field_name:
        says = f"Metric {code} names no field to sum."
        found.append(MetricFault("metric_without_field", True, says, renew))
    if metric.recurring:
        says = f"Metric {code} is recurring: what one period used would be billed again in every later one."
        found.append(MetricFault("metric_recurring", True, says, renew))
    if metric.expression:
        says = f"Metric {code} has an expression ({metric.expression}), whose result counts, not our kWh."
        found.append(MetricFault("metric_expression", True, says, renew))
    if metric.rounding_function:
        says = (
            f"Metric {code} rounds a period's total ({metric.rounding_function}, "
            f"{metric.rounding_precision or 0} decimals)."
        )
        found.append(MetricFault("metric_rounds", False, says, "Nothing, if your tariff says so."))
    return found
