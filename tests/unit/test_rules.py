"""Which stopped session is billed, held or excluded, and by which rule.

The oracle below is the table of rules, written down once more: every row is evaluated in exact
fractions, with divisions, and the first that is true decides.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocpp_billing.billing.rules import Limits, Rule, SessionFacts, Verdict, judge_session
from ocpp_billing.charging.reasons import Reason

START = datetime(2026, 11, 22, 17, 49, 29, tzinfo=UTC)
STOP = START + timedelta(minutes=90)
US = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

LIMITS = Limits(
    max_session_kwh=Decimal(500),
    max_power_kw=Decimal(400),
    max_session_hours=Decimal(72),
    min_session_kwh=Decimal(0),
)
SANE = SessionFacts(
    started_at=START,
    start_wh=100_000,
    stopped_at=STOP,
    stop_wh=112_345,
    manual_stop=False,
    first_seen_at=START + MINUTE,
    stop_seen_at=STOP + MINUTE,
)


def judge(go_live_at: datetime | None = None, **changes: Any) -> Verdict | None:
    """What becomes of the sane session with these changes, of limits or facts."""
    known = {field.name for field in dataclasses.fields(Limits)}
    limits = dataclasses.replace(LIMITS, **{k: v for k, v in changes.items() if k in known})
    facts = dataclasses.replace(SANE, **{k: v for k, v in changes.items() if k not in known})
    return judge_session(facts, limits, go_live_at)


def verdict(**changes: Any) -> tuple[str, str] | None:
    found = judge(**changes)
    return None if found is None else (found.outcome, str(found.reason))


def lasting(duration: timedelta, **changes: Any) -> tuple[str, str] | None:
    return verdict(stopped_at=START + duration, stop_seen_at=START + duration, **changes)


def test_a_sane_session_is_billed():
    assert judge() is None


@pytest.mark.parametrize("code", [str(reason) for reason in Reason])
def test_the_code_of_every_reason_is_its_name_in_lower_case(code):
    assert Reason[code.upper()] == code


def test_the_codes_of_design_are_all_there():
    fixed = (
        "identity_conflict clock_skew negative_energy implausible register_overlap manual_stop_without_evidence "
        "zero_energy below_minimum before_go_live unmapped_tag mapping_inactive no_subscription "
        "ambiguous_subscription metric_not_charged late_period changed_after_billing refund_by_credit_note by_operator"
    )
    assert set(fixed.split()) <= set(Reason)


class TestIdentity:
    def test_a_conflict_holds_the_session_and_says_what_it_is(self):
        found = judge(identity_conflict="tag number 8 was TAG-ALICE and is now TAG-EVE")
        assert found == Verdict(
            "hold",
            Reason.IDENTITY_CONFLICT,
            "tag number 8 was TAG-ALICE and is now TAG-EVE",
            Rule.IDENTITY,
        )


class TestClock:
    HELD = ("hold", "clock_skew")

    def test_a_missing_start_is_held(self):
        assert verdict(started_at=None) == self.HELD

    def test_a_stop_before_the_start_is_held(self):
        assert verdict(stopped_at=START - US) == self.HELD

    def test_a_stop_at_the_start_is_not(self):
        assert verdict(stopped_at=START, stop_wh=100_000) == ("exclude", "zero_energy")

    def test_a_start_five_minutes_after_it_was_first_seen_is_believed(self):
        assert verdict(first_seen_at=START - 5 * MINUTE) is None

    def test_a_start_any_later_is_held(self):
        assert verdict(first_seen_at=START - 5 * MINUTE - US) == self.HELD

    def test_a_stop_five_minutes_after_it_was_first_seen_is_believed(self):
        assert verdict(stop_seen_at=STOP - 5 * MINUTE) is None

    def test_a_stop_any_later_is_held(self):
        assert verdict(stop_seen_at=STOP - 5 * MINUTE - US) == self.HELD

    def test_a_session_delivered_nine_days_late_by_an_offline_charger_is_believed(self):
        assert verdict(first_seen_at=STOP + 9 * DAY, stop_seen_at=STOP + 9 * DAY) is None

    def test_a_start_sixty_days_before_the_latest_among_lower_ids_is_believed(self):
        assert verdict(latest_lower_start_at=START + 60 * DAY) is None

    def test_a_start_any_earlier_is_a_clock_that_was_reset(self):
        assert verdict(latest_lower_start_at=START + 60 * DAY + US) == self.HELD

    def test_the_clock_of_1970_is_held(self):
        at_1970 = datetime(1970, 1, 1, 0, 3, tzinfo=UTC)
        assert (
            verdict(started_at=at_1970, stopped_at=at_1970 + HOUR, latest_lower_start_at=START) == self.HELD
        )

    def test_a_start_in_the_first_year_of_the_calendar_breaks_nothing(self):
        first = datetime.min.replace(tzinfo=UTC)
        assert verdict(latest_lower_start_at=first) is None
        assert verdict(started_at=first, latest_lower_start_at=START) == self.HELD


class TestEnergyAndPower:
    IMPLAUSIBLE = ("hold", "implausible")

    def test_a_stop_register_below_the_start_register_is_held(self):
        assert verdict(stop_wh=99_999) == ("hold", "negative_energy")

    def test_the_most_energy_is_billed_and_one_watt_hour_more_is_held(self):
        assert lasting(10 * HOUR, stop_wh=600_000) is None
        assert lasting(10 * HOUR, stop_wh=600_001) == self.IMPLAUSIBLE

    def test_a_limit_may_be_a_fraction_of_a_kilowatt_hour(self):
        assert verdict(max_session_kwh=Decimal("12.345")) is None
        assert verdict(max_session_kwh=Decimal("12.344")) == self.IMPLAUSIBLE

    def test_the_longest_session_is_billed_and_a_microsecond_more_is_held(self):
        assert lasting(72 * HOUR) is None
        assert lasting(72 * HOUR + US) == self.IMPLAUSIBLE

    def test_a_longest_session_may_be_a_fraction_of_an_hour(self):
        assert verdict(max_session_hours=Decimal("1.5")) is None
        assert verdict(max_session_hours=Decimal("1.499")) == self.IMPLAUSIBLE

    def test_the_most_power_is_billed_and_one_watt_hour_more_is_held(self):
        assert lasting(HOUR, stop_wh=500_000) is None
        assert lasting(HOUR, stop_wh=500_001) == self.IMPLAUSIBLE

    def test_power_is_judged_to_the_microsecond(self):
        # 400 kW for 1.8 s are 200 Wh; a whole second would have allowed 111 Wh only.
        assert lasting(1.8 * SECOND, stop_wh=100_200) is None
        assert lasting(1.8 * SECOND, stop_wh=100_201) == self.IMPLAUSIBLE

    def test_energy_in_no_time_is_held(self):
        assert lasting(0 * SECOND, stop_wh=100_001) == self.IMPLAUSIBLE

    def test_no_energy_in_no_time_is_only_a_session_without_energy(self):
        assert lasting(0 * SECOND, stop_wh=100_000) == ("exclude", "zero_energy")

    @pytest.mark.parametrize("limit", ["max_session_kwh", "max_power_kw", "max_session_hours"])
    def test_a_limit_of_nothing_holds_everything_with_energy(self, limit):
        assert verdict(**{limit: Decimal(0)}) == self.IMPLAUSIBLE

    def test_registers_of_sixty_three_bits_are_compared_exactly(self):
        assert verdict(start_wh=2**63 - 2, stop_wh=2**63 - 1) is None


class TestOverlap:
    def test_another_session_in_the_same_time_and_registers_holds_it_and_is_named(self):
        found = judge(overlaps=4711)
        assert found is not None
        assert (found.outcome, found.reason) == ("hold", Reason.REGISTER_OVERLAP)
        assert "4711" in found.says


class TestManualStop:
    HELD = ("hold", "manual_stop_without_evidence")

    def test_without_evidence_it_is_held(self):
        assert verdict(manual_stop=True) == self.HELD

    @pytest.mark.parametrize("difference_wh", [-1, 0, 1])
    def test_it_is_billed_when_the_evidence_agrees_but_for_rounding(self, difference_wh):
        assert verdict(manual_stop=True, evidence_stop_wh=112_345 + difference_wh) is None

    @pytest.mark.parametrize("difference_wh", [-2, 2, -12_345, 3_000])
    def test_it_is_held_when_the_evidence_says_otherwise(self, difference_wh):
        assert verdict(manual_stop=True, evidence_stop_wh=112_345 + difference_wh) == self.HELD

    @pytest.mark.parametrize("evidence_stop_wh", [None, 100_000, 100_001, 103_000])
    def test_a_manual_zero_is_never_excluded_as_zero_energy(self, evidence_stop_wh):
        assert verdict(manual_stop=True, stop_wh=100_000, evidence_stop_wh=evidence_stop_wh) == self.HELD

    def test_evidence_against_the_stations_own_stop_holds_nothing(self):
        assert verdict(evidence_stop_wh=1) is None


class TestAmount:
    def test_the_stations_own_stop_without_energy_is_excluded(self):
        assert verdict(stop_wh=100_000) == ("exclude", "zero_energy")

    def test_the_least_energy_is_billed_and_one_watt_hour_less_is_excluded(self):
        assert verdict(min_session_kwh=Decimal("12.345")) is None
        assert verdict(min_session_kwh=Decimal("12.346")) == ("exclude", "below_minimum")

    def test_without_a_minimum_a_single_watt_hour_is_billed(self):
        assert verdict(stop_wh=100_001) is None

    def test_a_stop_before_going_live_is_excluded(self):
        assert verdict(go_live_at=STOP + US) == ("exclude", "before_go_live")

    def test_a_stop_at_the_moment_of_going_live_is_billed(self):
        assert verdict(go_live_at=STOP) is None

    def test_a_session_that_only_began_before_going_live_is_billed(self):
        assert verdict(go_live_at=START + MINUTE) is None


# -- order: each row with the change that makes it true --------------------------------------------

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("identity_conflict", {"identity_conflict": "another tag"}),
    ("clock_skew", {"latest_lower_start_at": START + 61 * DAY}),
    ("negative_energy", {"stop_wh": 99_000}),
    ("implausible", {"max_session_hours": Decimal(1)}),
    ("register_overlap", {"overlaps": 7}),
    ("manual_stop_without_evidence", {"manual_stop": True}),
    ("zero_energy", {"stop_wh": 100_000}),
    ("below_minimum", {"min_session_kwh": Decimal(100)}),
    ("before_go_live", {"go_live_at": STOP + DAY}),
    ("known_by_another_source", {"known_elsewhere": "another source has it"}),
    ("billed_by_another_source", {"known_elsewhere": "another source sent it", "was_sent_elsewhere": True}),
]
PAIRS = [
    (first, second)
    for first, second in itertools.combinations(ROWS, 2)
    if not first[1].keys() & second[1].keys()  # energy is negative or zero, not both
]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda row: row[0])
def test_the_earlier_of_two_rules_wins(first, second):
    found = judge(**first[1], **second[1])
    assert found is not None
    assert found.reason == first[0]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_rule_alone_speaks_in_words(row):
    found = judge(**row[1])
    assert found is not None
    assert found.reason == row[0]
    assert found.says


# -- the oracle ------------------------------------------------------------------------------------

Row = tuple[str, str, Callable[["Plain"], bool]]


@dataclasses.dataclass(frozen=True)
class Plain:
    """A case in microseconds and fractions."""

    conflict: bool
    start: int | None
    stop: int
    seen: int
    stop_seen: int
    lower: int | None
    start_wh: int
    stop_wh: int
    overlaps: bool
    manual: bool
    evidence: int | None
    kwh: Fraction
    kw: Fraction
    hours: Fraction
    least: Fraction
    live: int | None

    @property
    def lasted(self) -> int:
        assert self.start is not None
        return self.stop - self.start

    @property
    def too_strong(self) -> bool:
        delivered = Fraction(self.stop_wh - self.start_wh, 1000)
        if self.lasted == 0:
            return delivered > 0
        return delivered / Fraction(self.lasted, 3_600 * 10**6) > self.kw


M = 10**6
TABLE: list[Row] = [
    ("hold", "identity_conflict", lambda s: s.conflict),
    ("hold", "clock_skew", lambda s: s.start is None),
    ("hold", "clock_skew", lambda s: s.lasted < 0),
    ("hold", "clock_skew", lambda s: s.start - s.seen > 300 * M or s.stop - s.stop_seen > 300 * M),
    ("hold", "clock_skew", lambda s: s.lower is not None and s.lower - s.start > 60 * 86_400 * M),
    ("hold", "negative_energy", lambda s: s.stop_wh < s.start_wh),
    ("hold", "implausible", lambda s: Fraction(s.stop_wh - s.start_wh, 1000) > s.kwh),
    ("hold", "implausible", lambda s: Fraction(s.lasted, 3_600 * M) > s.hours),
    ("hold", "implausible", lambda s: s.too_strong),
    ("hold", "register_overlap", lambda s: s.overlaps),
    ("hold", "manual_stop_without_evidence", lambda s: s.manual and s.evidence is None),
    ("hold", "manual_stop_without_evidence", lambda s: s.manual and s.stop_wh == s.start_wh),
    ("hold", "manual_stop_without_evidence", lambda s: s.manual and s.evidence - s.stop_wh not in {-1, 0, 1}),
    ("exclude", "zero_energy", lambda s: s.stop_wh == s.start_wh),
    ("exclude", "below_minimum", lambda s: Fraction(s.stop_wh - s.start_wh, 1000) < s.least),
    ("exclude", "before_go_live", lambda s: s.live is not None and s.stop < s.live),
]


def by_the_table(case: Plain) -> tuple[str, str] | None:
    return next(((outcome, code) for outcome, code, true in TABLE if true(case)), None)


def near(*values: int) -> st.SearchStrategy[int]:
    """A value at one of these boundaries or one step beside it."""
    return st.builds(int.__add__, st.sampled_from(values), st.sampled_from([-1, 0, 0, 1]))


def mostly_none(value: st.SearchStrategy[int]) -> st.SearchStrategy[int | None]:
    return st.one_of(st.none(), st.none(), st.none(), value)


@st.composite
def cases(draw: st.DrawFn) -> Plain:
    amounts = st.one_of(
        st.sampled_from(["0", "0.001", "0.5", "1", "11", "22.075", "50", "400", "500"]),
        st.decimals(0, 999, places=3).map(str),
    ).map(Fraction)
    kwh, kw, least = (
        draw(amounts),
        draw(amounts),
        draw(st.sampled_from([Fraction(0), Fraction(1, 2), Fraction(11)])),
    )
    hours = draw(st.sampled_from([Fraction(0), Fraction(1, 1000), Fraction(3, 2), Fraction(72)]))
    longest = int(hours * 3_600 * M)
    lasted = draw(st.one_of(near(0, longest), st.integers(0, longest + 1), st.sampled_from([M, 1_800_000])))
    strongest = int(kw * 1000 * Fraction(lasted, 3_600 * M))
    most = int(kwh * 1000)
    energy = draw(
        st.one_of(
            near(0, most, max(strongest, -1), int(least * 1000)),
            st.integers(-1, max(min(most, strongest), 0)),
        )
    )
    start = draw(st.one_of(st.just(0), st.just(0), st.just(0), st.just(0), st.none()))
    start_wh = draw(st.sampled_from([0, 100_000, 2**62]))
    return Plain(
        conflict=draw(st.sampled_from([False] * 9 + [True])),
        start=start,
        stop=lasted,
        seen=draw(st.one_of(st.just(0), near(-300 * M))),
        stop_seen=lasted + draw(st.one_of(st.just(0), near(-300 * M))),
        lower=draw(mostly_none(near(0, 60 * 86_400 * M))),
        start_wh=start_wh,
        stop_wh=start_wh + energy,
        overlaps=draw(st.sampled_from([False] * 5 + [True])),
        manual=draw(st.booleans()),
        evidence=draw(st.one_of(st.none(), near(start_wh + energy - 1, start_wh + energy + 1, start_wh))),
        kwh=kwh,
        kw=kw,
        hours=hours,
        least=least,
        live=draw(mostly_none(near(lasted))),
    )


def exactly(amount: Fraction) -> Decimal:
    return Decimal(amount.numerator) / Decimal(amount.denominator)


def instant(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else START + timedelta(microseconds=microseconds)


def case_arguments(case: Plain) -> tuple[SessionFacts, Limits, datetime | None]:
    """A case as the rules take it: session, thresholds, going live."""
    facts = SessionFacts(
        started_at=instant(case.start),
        start_wh=case.start_wh,
        stopped_at=START + timedelta(microseconds=case.stop),
        stop_wh=case.stop_wh,
        manual_stop=case.manual,
        first_seen_at=START + timedelta(microseconds=case.seen),
        stop_seen_at=START + timedelta(microseconds=case.stop_seen),
        latest_lower_start_at=instant(case.lower),
        overlaps=7 if case.overlaps else None,
        identity_conflict="another tag" if case.conflict else None,
        evidence_stop_wh=case.evidence,
    )
    limits = Limits(exactly(case.kwh), exactly(case.kw), exactly(case.hours), exactly(case.least))
    return facts, limits, instant(case.live)


@settings(max_examples=400)
@given(cases())
def test_rules_agree_with_the_table_of_design(case):
    found = judge_session(*case_arguments(case))
    assert (found and (found.outcome, str(found.reason))) == by_the_table(case)


@given(cases(), st.timedeltas(-100 * DAY, 100 * DAY), st.integers(-(10**6), 10**6))
def test_only_differences_of_times_and_registers_count(case, later, shift_wh):
    def facts(move: timedelta, wh: int) -> SessionFacts:
        def at(microseconds: int | None) -> Any:
            moved = instant(microseconds)
            return None if moved is None else moved + move

        return SessionFacts(
            started_at=at(case.start),
            start_wh=case.start_wh + wh,
            stopped_at=at(case.stop),
            stop_wh=case.stop_wh + wh,
            manual_stop=case.manual,
            first_seen_at=at(case.seen),
            stop_seen_at=at(case.stop_seen),
            latest_lower_start_at=at(case.lower),
            evidence_stop_wh=None if case.evidence is None else case.evidence + wh,
        )

    here, there = (
        judge_session(facts(0 * DAY, 0), LIMITS, None),
        judge_session(facts(later, shift_wh), LIMITS, None),
    )
    assert (here and here.reason) == (there and there.reason)
