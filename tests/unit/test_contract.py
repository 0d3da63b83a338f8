"""Which subscription row of Lago bills an event of a given time, or why none does.

The oracle sorts every row into one of five piles and then only counts the piles.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocpp_billing.charging.reasons import Reason
from ocpp_billing.lago.contract import Chosen, NotBilled, PlanCharge, SubscriptionRow, choose_subscription

MIDNIGHT = datetime(2026, 11, 1, tzinfo=UTC)
ARREARS, ADVANCE = PlanCharge(pay_in_advance=False), PlanCharge(pay_in_advance=True)
CHARGES = {"ev_payg": ARREARS, "ev_prepaid": ADVANCE}
INSTANT = timedelta(microseconds=1)


def day(number: int) -> datetime:
    return MIDNIGHT + timedelta(days=number)


def row(lago_id: str = "row-1", **changes: Any) -> SubscriptionRow:
    """An active row since day 0, in its period since day 10."""
    facts: dict[str, Any] = {
        "external_id": "sub-alice",
        "external_customer_id": "alice",
        "plan_code": "ev_payg",
        "status": "active",
        "started_at": day(0),
        "terminated_at": None,
        "period_from": day(10),
        "period_to": day(40),
    }
    return SubscriptionRow(lago_id=lago_id, **(facts | changes))


def choose(rows: list[SubscriptionRow], at: datetime, subscription: str | None = None) -> Chosen | NotBilled:
    return choose_subscription(
        rows, CHARGES, at, customer="alice", subscription=subscription, metric_code="ev_charging_kwh"
    )


def chosen(rows: list[SubscriptionRow], at: datetime, subscription: str | None = None) -> str:
    """Lago's id of the chosen row, or the reason why there is none."""
    found = choose(rows, at, subscription)
    return found.row.lago_id if isinstance(found, Chosen) else str(found.reason)


def words(rows: list[SubscriptionRow], at: datetime, subscription: str | None = None) -> str:
    found = choose(rows, at, subscription)
    assert isinstance(found, NotBilled)
    return found.says


class TestTheStraightCase:
    def test_the_only_subscription_bills(self):
        assert choose([row()], day(12)) == Chosen(row(), ARREARS)

    def test_the_named_subscription_bills(self):
        other = row("row-2", external_id="sub-fleet")
        assert chosen([row(), other], day(12), "sub-fleet") == "row-2"

    def test_how_the_plan_charges_is_told(self):
        found = choose([row(plan_code="ev_prepaid")], day(12))
        assert isinstance(found, Chosen)
        assert found.charge == ADVANCE


class TestNoSubscription:
    def test_a_customer_without_any(self):
        assert chosen([], day(12)) == Reason.NO_SUBSCRIPTION

    def test_a_name_that_the_customer_does_not_have(self):
        assert chosen([row()], day(12), "sub-bob") == Reason.NO_SUBSCRIPTION

    def test_another_customers_subscription_never_bills(self):
        assert chosen([row(external_customer_id="bob")], day(12), "sub-alice") == Reason.NO_SUBSCRIPTION

    @pytest.mark.parametrize("status", ["pending", "canceled", "incomplete", "one that Lago invents later"])
    def test_a_row_that_is_not_in_force(self, status):
        assert chosen([row(status=status)], day(12)) == Reason.NO_SUBSCRIPTION

    def test_a_row_that_has_not_started(self):
        assert chosen([row(started_at=None)], day(12)) == Reason.NO_SUBSCRIPTION

    def test_an_event_just_before_the_start(self):
        young = row(started_at=day(12), period_from=day(12))
        assert chosen([young], day(12) - INSTANT) == Reason.NO_SUBSCRIPTION
        assert chosen([young], day(12)) == "row-1"

    def test_an_event_at_the_end(self):
        ended = row(status="terminated", terminated_at=day(12))
        assert chosen([ended], day(12)) == Reason.NO_SUBSCRIPTION

    def test_it_names_the_customer_and_the_time(self):
        assert (
            words([], day(12))
            == "customer alice has no subscription in force at 2026-11-13 00:00:00 UTC in Lago"
        )

    def test_it_names_the_subscription_of_the_mapping(self):
        assert words([], day(12), "sub-bob").startswith("subscription sub-bob has no")


class TestLate:
    def test_an_event_just_before_the_current_period(self):
        assert chosen([row()], day(10) - INSTANT) == Reason.LATE_PERIOD

    def test_an_event_at_the_first_instant_of_the_current_period_is_not(self):
        assert chosen([row()], day(10)) == "row-1"

    def test_an_event_after_the_known_period_is_left_to_the_check_before_sending(self):
        assert chosen([row()], day(41)) == "row-1"

    def test_a_terminated_row_was_billed_when_it_ended(self):
        ended = row(status="terminated", terminated_at=day(15))
        assert chosen([ended], day(15) - INSTANT) == Reason.LATE_PERIOD

    def test_an_active_row_whose_period_lago_does_not_tell_is_not_guessed(self):
        silent = row(period_from=None, period_to=None)
        assert chosen([silent], day(12)) == Reason.LATE_PERIOD
        assert words([silent], day(12)) == "Lago does not say when the billing period of sub-alice began"

    def test_it_names_the_subscription_and_the_time(self):
        assert words([row()], day(9)) == (
            "the billing period of sub-alice that contains 2026-11-10 00:00:00 UTC is already invoiced"
        )


class TestUpgrade:
    """The external id stays, a new row begins, and the old one is billed at once."""

    OLD = row("old", status="terminated", terminated_at=day(20), plan_code="ev_prepaid")
    NEW = row("new", started_at=day(20), period_from=day(20))

    @pytest.mark.parametrize("subscription", [None, "sub-alice"])
    def test_an_event_before_it_belongs_to_the_old_row_and_is_late(self, subscription):
        assert chosen([self.OLD, self.NEW], day(20) - INSTANT, subscription) == Reason.LATE_PERIOD

    @pytest.mark.parametrize("subscription", [None, "sub-alice"])
    def test_an_event_from_it_on_belongs_to_the_new_row(self, subscription):
        assert chosen([self.OLD, self.NEW], day(20), subscription) == "new"

    def test_a_downgrade_that_waits_changes_nothing_yet(self):
        waiting = row("next", status="pending", started_at=None, period_from=None)
        assert chosen([row(), waiting], day(30)) == "row-1"

    def test_the_old_plan_is_not_asked_about_the_new_time(self):
        old = row("old", status="terminated", terminated_at=day(20), plan_code="flat")
        assert chosen([old, self.NEW], day(21)) == "new"
        assert chosen([old, self.NEW], day(19)) == Reason.METRIC_NOT_CHARGED


class TestSeveral:
    FLEET = row("row-2", external_id="sub-fleet")

    def test_two_that_charge_the_metric_are_ambiguous_and_named(self):
        assert chosen([row(), self.FLEET], day(12)) == Reason.AMBIGUOUS_SUBSCRIPTION
        assert "sub-alice, sub-fleet" in words([row(), self.FLEET], day(12))

    def test_one_that_charges_the_metric_beside_one_that_does_not_is_used(self):
        assert chosen([row(plan_code="parking"), self.FLEET], day(12)) == "row-2"

    def test_one_that_ended_before_is_no_second(self):
        ended = row(status="terminated", terminated_at=day(12))
        assert chosen([ended, self.FLEET], day(12)) == "row-2"

    def test_one_that_was_in_force_then_is_a_second_though_it_has_ended_since(self):
        ended = row(status="terminated", terminated_at=day(13))
        assert chosen([ended, self.FLEET], day(12)) == Reason.AMBIGUOUS_SUBSCRIPTION


class TestNotCharged:
    def test_a_plan_without_a_charge_for_the_metric_is_named(self):
        assert chosen([row(plan_code="parking")], day(12)) == Reason.METRIC_NOT_CHARGED
        assert words([row(plan_code="parking")], day(12)) == (
            "the plan parking has no charge for ev_charging_kwh; add it in Lago"
        )

    def test_it_goes_before_late(self):
        assert chosen([row(plan_code="parking")], day(1)) == Reason.METRIC_NOT_CHARGED


# -- the oracle ------------------------------------------------------------------------------------

days = st.integers(0, 8)
rows = st.builds(
    SubscriptionRow,
    lago_id=st.uuids().map(str),
    external_id=st.sampled_from(["sub-1", "sub-2"]),
    external_customer_id=st.sampled_from(["alice", "alice", "alice", "bob"]),
    plan_code=st.sampled_from(["ev_payg", "ev_prepaid", "parking"]),
    status=st.sampled_from(
        ["active", "active", "terminated", "terminated", "pending", "canceled", "incomplete"]
    ),
    started_at=st.one_of(st.none(), days.map(day), days.map(day)),
    terminated_at=st.one_of(st.none(), days.map(day)),
    period_from=st.one_of(st.none(), days.map(day), days.map(day)),
    period_to=st.none(),
)


def pile(one: SubscriptionRow, at: datetime, subscription: str | None) -> str:
    """Where the row belongs: another's, absent at that time, uncharged, late or open."""
    if one.external_customer_id != "alice" or subscription not in {None, one.external_id}:
        return "another's"
    never = datetime.max.replace(tzinfo=UTC)
    begin, end = one.started_at or never, one.terminated_at or never
    if one.status in {"pending", "canceled", "incomplete"} or at < begin or at >= end:
        return "absent"
    if one.plan_code == "parking":
        return "uncharged"
    if one.status == "terminated":
        return "late"
    return "open" if at >= (one.period_from or never) else "late"


@settings(max_examples=500)
@given(st.lists(rows, max_size=4), days, st.sampled_from([None, "sub-1", "sub-2"]))
def test_the_choice_agrees_with_the_piles(some, number, subscription):
    piles = Counter(pile(one, day(number), subscription) for one in some)
    if piles["open"] + piles["late"] > 1:
        expected = "ambiguous_subscription"
    elif piles["open"]:
        (expected,) = (one.lago_id for one in some if pile(one, day(number), subscription) == "open")
    elif piles["late"]:
        expected = "late_period"
    else:
        expected = "metric_not_charged" if piles["uncharged"] else "no_subscription"
    assert chosen(some, day(number), subscription) == expected


@given(st.lists(rows, max_size=4), days, st.randoms(use_true_random=False))
def test_the_order_of_lagos_rows_does_not_matter(some, number, random):
    shuffled = random.sample(some, len(some))
    assert choose(shuffled, day(number)) == choose(some, day(number))
