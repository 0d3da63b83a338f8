"""Whether Lago could still bill an event that it does not hold, and what a final invoice counts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from ocpp_billing.billing.confirm import counted_by_invoice
from ocpp_billing.billing.late import judge_late
from ocpp_billing.lago.contract import PlanCharge, SubscriptionRow
from ocpp_billing.lago.wire import BillableMetric, Event, Usage, UsageEvent

MARCH = datetime(2026, 3, 31, 21, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
ROW = SubscriptionRow(
    lago_id="row-1",
    external_id="sub-alice",
    external_customer_id="alice",
    plan_code="ev_payg",
    status="active",
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    terminated_at=None,
    period_from=APRIL,
    period_to=APRIL + timedelta(days=30),
)
ENDED = replace(ROW, status="terminated", terminated_at=APRIL, period_from=None, period_to=None)
ARREARS = {"ev_payg": PlanCharge(pay_in_advance=False)}
ADVANCE = {"ev_payg": PlanCharge(pay_in_advance=True)}
EVENT = UsageEvent(
    transaction_id="steve:main:1-01234567:1",
    code="ev_charging_kwh",
    external_subscription_id="sub-alice",
    timestamp="1774990800.000",
    properties={"kwh": "5.000"},
    value_field="kwh",
)


def metric(code="ev_charging_kwh", **changes):
    facts = {"aggregation_type": "sum_agg", "field_name": "kwh", **changes}
    return BillableMetric(lago_id="m", code=code, **facts)


@pytest.mark.parametrize(
    ("rows", "charges", "of", "reason", "is_dead"),
    [
        ([ROW], ARREARS, metric(), "late_period", True),
        ([ENDED], ARREARS, metric(), "late_period", True),
        ([ROW], {}, metric(), "late_period", True),
        ([ROW], ADVANCE, metric(), "late_period", False),
        ([ENDED], ADVANCE, metric(), "late_period", False),
        ([ROW], ARREARS, metric(recurring=True), "late_period", False),
        ([ROW], ARREARS, metric("another"), "late_period", False),
        ([ROW], ARREARS, None, "late_period", False),
        ([replace(ROW, period_from=MARCH)], {}, metric(), "metric_not_charged", False),
        ([ENDED, replace(ROW, period_from=MARCH)], ARREARS, metric(), "metric_not_charged", False),
        ([], ARREARS, metric(), "no_subscription", False),
    ],
)
def test_only_what_is_in_arrears_and_closed_is_beyond_being_billed(rows, charges, of, reason, is_dead):
    code = EVENT.code if of is None else of.code
    standing = judge_late(rows, charges, of, EVENT, MARCH, metric_code=code)
    assert (standing.reason, standing.is_dead) == (reason, is_dead)
    assert standing.charged_on_arrival == (charges is ADVANCE)


@pytest.mark.parametrize("of", [metric("another"), None], ids=["another metric", "none in Lago"])
@pytest.mark.parametrize("period_from", [MARCH, APRIL], ids=["open", "closed"])
def test_an_event_of_another_code_says_so_also_while_lago_lacks_the_new_metric(of, period_from):
    row = replace(ROW, period_from=period_from)
    standing = judge_late([row], {}, of, EVENT, MARCH, metric_code="another")
    assert "LAGO_METRIC_CODE has been changed since: put ev_charging_kwh back" in standing.says
    assert "no metric" not in standing.says
    assert "does not sum" not in standing.says
    assert not standing.is_dead


def test_where_the_metric_itself_is_gone_that_is_said():
    standing = judge_late([ROW], {}, None, EVENT, MARCH, metric_code=EVENT.code)
    assert "Lago has no metric ev_charging_kwh" in standing.says


def arrived(name, kwh, minute):
    return Event(
        transaction_id=name,
        timestamp="2026-03-31T21:00:00.000Z",
        properties={"kwh": kwh},
        created_at=f"2026-04-01T00:{minute:02d}:00Z",
    )


def counted(events, units, of=None):
    wanted = {event.transaction_id for event in events if event.transaction_id.startswith("steve:")}
    return counted_by_invoice(events, wanted, Decimal(units), "kwh", of or metric())


A, B = arrived("steve:a", "5.000", 5), arrived("steve:b", "5.000", 20)
OTHER = arrived("other", "5.000", 10)


@pytest.mark.parametrize(
    ("events", "units", "found"),
    [
        ([A, B], "10", {"steve:a", "steve:b"}),
        ([B, A], "5", {"steve:a"}),
        ([A, B], "0", set()),
        ([A, OTHER, B], "10", {"steve:a"}),
        ([OTHER, B], "5", set()),
        ([A, OTHER], "5", {"steve:a"}),
        ([A, arrived("other", "0", 7), B], "5", {"steve:a"}),
        ([A, arrived("other", "none", 7), B], "5.0", {"steve:a"}),
    ],
)
def test_an_invoice_counts_what_had_come_when_it_was_cut(events, units, found):
    assert counted(events, units) == found


@pytest.mark.parametrize(
    ("events", "units"),
    [
        ([A, B], "7"),
        ([A, arrived("steve:b", "-5.000", 20)], "0"),
        ([arrived("steve:a", "5.000", 5), arrived("steve:b", "4.000", 5)], "5"),
        ([Event(transaction_id="steve:a", timestamp="2026-03-31T21:00:00Z", properties={"kwh": "5"})], "0"),
    ],
    ids=["no such sum", "two moments", "came together", "nobody knows when it came"],
)
def test_what_a_sum_does_not_tell_for_certain_is_not_guessed(events, units):
    assert counted(events, units) is None


def test_what_lago_does_not_list_is_not_judged():
    assert counted_by_invoice([A], {"steve:a", "steve:b"}, Decimal(5), "kwh", metric()) is None


def test_a_sum_is_rounded_as_the_metric_says():
    of = metric(rounding_function="round", rounding_precision=0)
    assert counted([arrived("steve:a", "5.400", 5), B], "5", of) == {"steve:a"}


def test_the_last_second_of_a_period_belongs_to_it():
    usage = Usage(from_datetime=MARCH, to_datetime=APRIL - timedelta(seconds=1))
    assert usage.contains(APRIL - timedelta(milliseconds=1))
    assert usage.contains(MARCH)
    assert not usage.contains(APRIL)
    assert not usage.contains(MARCH - timedelta(milliseconds=1))
