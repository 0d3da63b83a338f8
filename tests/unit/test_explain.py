"""The rules with their numbers in place say what the decision says."""

import operator
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings

from ocpp_billing.billing.explain import explain_session
from ocpp_billing.billing.rules import Rule, judge_session
from ocpp_billing.charging.reasons import Reason
from tests.unit.test_rules import LIMITS, SANE, STOP, case_arguments, cases

# When a rule has nothing against billing, its numbers stand in this relation.
PASSED_WHEN = {
    Rule.STOP_AFTER_START: operator.ge,
    Rule.START_NOT_AHEAD: operator.le,
    Rule.STOP_NOT_AHEAD: operator.le,
    Rule.CLOCK_NOT_RESET: operator.le,
    Rule.REGISTERS_RISE: operator.ge,
    Rule.ENERGY: operator.le,
    Rule.DURATION: operator.le,
    Rule.POWER: operator.le,
    Rule.SOME_ENERGY: operator.ne,
    Rule.MINIMUM: operator.ge,
    Rule.GO_LIVE: operator.ge,
}


def decided(checks):
    return next((check.verdict for check in checks if check.decides), None)


@settings(max_examples=100)
@given(cases())
def test_the_first_rule_against_it_is_the_decision_and_no_number_contradicts_its_mark(case):
    facts, limits, go_live_at = case_arguments(case)
    checks = explain_session(facts, limits, go_live_at)
    assert decided(checks) == judge_session(facts, limits, go_live_at)
    for check in checks:
        if check.rule is Rule.MANUAL_STOP and facts.manual_stop and facts.energy_wh != 0:
            agrees = check.measured is not None and check.measured <= check.limit
            assert check.passed == agrees
        elif check.rule in PASSED_WHEN and check.measured is not None:
            # A minimum says nothing about a session without energy: the rule before it does.
            if check.rule is Rule.MINIMUM and facts.energy_wh == 0:
                continue
            assert check.passed == PASSED_WHEN[check.rule](check.measured, check.limit), check


@settings(max_examples=40)
@given(cases())
def test_what_a_person_overrode_decides_no_more_and_is_still_said(case):
    facts, limits, go_live_at = case_arguments(case)
    found = judge_session(facts, limits, go_live_at)
    if found is None:
        return
    checks = explain_session(facts, limits, go_live_at, {found.reason})
    assert decided(checks) == judge_session(facts, limits, go_live_at, {found.reason})
    assert [check.rule for check in checks if check.accepted]


def test_a_sane_session_passes_every_rule_with_its_numbers():
    checks = {check.rule: check for check in explain_session(SANE, LIMITS, STOP - timedelta(days=1))}
    assert all(check.passed for check in checks.values())
    assert Rule.CLOCK_NOT_RESET not in checks  # no lower id is known
    assert (checks[Rule.POWER].measured, checks[Rule.POWER].limit) == (Decimal("8.2"), Decimal(400))
    assert (checks[Rule.ENERGY].measured, checks[Rule.ENERGY].limit) == (12_345, 500_000)
    assert checks[Rule.DURATION].limit == timedelta(hours=72)


def test_without_a_start_nothing_is_said_about_duration_and_power():
    from dataclasses import replace

    checks = {check.rule: check for check in explain_session(replace(SANE, started_at=None), LIMITS, None)}
    assert checks[Rule.START_KNOWN].verdict.reason is Reason.CLOCK_SKEW
    assert not {Rule.DURATION, Rule.POWER, Rule.STOP_AFTER_START} & set(checks)


@pytest.mark.parametrize("hours", ["1000000000", "0.0001"])
def test_a_limit_of_any_size_can_be_shown(hours):
    from dataclasses import replace

    limits = replace(LIMITS, max_session_hours=Decimal(hours))
    explained = {check.rule: check for check in explain_session(SANE, limits, None)}
    assert explained[Rule.DURATION].passed == (hours != "0.0001")
