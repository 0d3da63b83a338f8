"""What Lago needs before it can bill charging sessions: a metric, and, to try it out, a plan.

Only what is missing is created; what is there is never changed, however wrong it is: it may bill something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocpp_billing.lago.contract import metric_faults
from ocpp_billing.lago.errors import Unprocessable
from ocpp_billing.lago.wire import BillableMetric, NewCharge, NewMetric, NewPlan

if TYPE_CHECKING:
    from decimal import Decimal

    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.wire import Plan

FIELD_NAME: Final = "kwh"
TAKEN: Final = "value_already_exist"


@dataclass(frozen=True, slots=True)
class PlanWish:
    """A plan to try billing with.

    Attributes:
        code: its code.
        price: of one kWh, in the currency.
        currency: ISO 4217.
        interval: ``weekly``, ``monthly``, ``quarterly`` or ``yearly``.
    """

    code: str
    price: Decimal
    currency: str
    interval: str


@dataclass(frozen=True, slots=True)
class Setup:
    """What is there, what is missing, and what is there and will not do.

    Attributes:
        code: of the metric.
        metric: as Lago has it; None = to be created.
        wish: the plan that was asked for; None = none was.
        plan: as Lago has it; None = to be created, if one was asked for.
        mismatches: what is there and would not bill, each with what to do in Lago.
        remarks: what is there, would bill, and deserves a look.
    """

    code: str
    metric: BillableMetric | None
    wish: PlanWish | None
    plan: Plan | None
    mismatches: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """What would be created, a sentence each."""
        found = []
        if self.metric is None:
            found.append(f"billable metric {self.code}: sums the property {FIELD_NAME}, not rounded")
        if self.wish is not None and self.plan is None:
            found.append(
                f"plan {self.wish.code}: {self.wish.interval}, no base fee, "
                f"{self.wish.price:f} {self.wish.currency} per kWh of {self.code}, in arrears"
            )
        return tuple(found)


def look_at_setup(lago: LagoClient, code: str, wish: PlanWish | None) -> Setup:
    """Read what Lago has of it.

    Raises:
        LagoError: when Lago cannot be asked.
    """
    metric = lago.metric(code)
    plan = None if wish is None else lago.plan(wish.code)
    faults = [] if metric is None else metric_faults(metric)
    mismatches = [f"{fault.says} {fault.do}" for fault in faults if fault.breaks]
    if plan is not None:
        mismatches += plan_mismatches(plan, code)
    return Setup(
        code,
        metric,
        wish,
        plan,
        tuple(mismatches),
        tuple(f"{fault.says} {fault.do}" for fault in faults if not fault.breaks),
    )


def plan_mismatches(plan: Plan, code: str) -> list[str]:
    """Why a plan that is there would not charge the metric."""
    if plan.charges_on(code):
        return []
    says = f"Plan {plan.code} is there and has no charge on {code}."
    return [f"{says} Add one to it in Lago, or choose another code with --plan."]


def create_missing(lago: LagoClient, setup: Setup) -> Setup:
    """Create what is missing, and read it all again: what Lago then has is what counts.

    Safe to repeat, also when somebody else creates the same in the meantime.

    Raises:
        LagoError: when Lago cannot be asked or refuses.
    """
    metric = setup.metric
    if metric is None:
        metric = _created_metric(lago, setup.code)
    if setup.wish is not None and setup.plan is None and metric is not None:
        _create_plan(lago, setup.wish, metric)
    return look_at_setup(lago, setup.code, setup.wish)


def _created_metric(lago: LagoClient, code: str) -> BillableMetric | None:
    new = NewMetric(
        name="EV charging (kWh)",
        code=code,
        aggregation_type="sum_agg",
        field_name=FIELD_NAME,
        recurring=False,
    )
    try:
        return lago.create_metric(new)
    except Unprocessable as error:
        if TAKEN not in error.words:
            raise
        return lago.metric(code)


def _create_plan(lago: LagoClient, wish: PlanWish, metric: BillableMetric) -> None:
    charge = NewCharge(
        billable_metric_id=metric.lago_id,
        charge_model="standard",
        properties={"amount": f"{wish.price:f}"},
        pay_in_advance=False,
    )
    new = NewPlan(
        name="EV charging",
        code=wish.code,
        interval=wish.interval,
        amount_cents=0,
        amount_currency=wish.currency,
        pay_in_advance=False,
        charges=[charge],
    )
    try:
        lago.create_plan(new)
    except Unprocessable as error:
        if TAKEN not in error.words:
            raise
