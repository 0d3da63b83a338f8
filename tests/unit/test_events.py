"""What is sent to Lago, and how much of a session is still to be sent."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocpp_billing.billing.events import (
    EventFacts,
    EventForm,
    KnownEvent,
    Settlement,
    build_event,
    build_transaction_id,
    settle,
)
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.energy import format_kwh, say_kwh
from ocpp_billing.lago.wire import problems

energies = st.one_of(st.integers(-2_000, 2_000), st.integers(-(2**63), 2**63 - 1))


class TestFormatKwh:
    @pytest.mark.parametrize(
        ("energy_wh", "text"),
        [
            (12_345, "12.345"),
            (0, "0.000"),
            (1, "0.001"),
            (999, "0.999"),
            (1_000, "1.000"),
            (-1, "-0.001"),
            (-500, "-0.500"),
            (-12_345, "-12.345"),
            (16_777_217, "16777.217"),
            (2**63 - 1, "9223372036854775.807"),
        ],
    )
    def test_watt_hours_are_written_exactly(self, energy_wh, text):
        assert format_kwh(energy_wh) == text

    @given(energies)
    def test_it_is_what_lago_counts_as_a_number(self, energy_wh):
        assert re.fullmatch(r"-?[0-9]+\.[0-9]{3}", format_kwh(energy_wh))

    @given(energies)
    def test_nothing_is_lost_on_the_way_there_and_back(self, energy_wh):
        assert int(Decimal(format_kwh(energy_wh)).scaleb(3)) == energy_wh

    @given(energies)
    def test_it_is_what_decimal_writes_in_plain_form(self, energy_wh):
        assert format_kwh(energy_wh) == format(Decimal(energy_wh).scaleb(-3), "f")

    @given(energies)
    def test_people_read_the_same_with_separators(self, energy_wh):
        assert say_kwh(energy_wh) == format(Decimal(energy_wh).scaleb(-3), ",f")


sources = st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True)
fingerprints = st.binary(min_size=32, max_size=32)


class TestTransactionId:
    def test_it_tells_source_session_and_part(self):
        fingerprint = bytes.fromhex("0a1b2c3d") + bytes(28)
        assert build_transaction_id("main", 4711, fingerprint, 2) == "steve:main:4711-0a1b2c3d:2"

    @given(sources, st.integers(1, 2**63 - 1), fingerprints, st.integers(1, 999))
    def test_it_holds_only_characters_that_lago_can_look_up(self, source, steve_id, fingerprint, n):
        assert re.fullmatch(r"[A-Za-z0-9_:-]+", build_transaction_id(source, steve_id, fingerprint, n))

    @given(sources, st.integers(1, 2**63 - 1), fingerprints, st.integers(1, 999))
    def test_all_that_it_was_made_of_can_be_read_from_it(self, source, steve_id, fingerprint, n):
        text = build_transaction_id(source, steve_id, fingerprint, n)
        (read,) = re.findall(r"^steve:([^:]*):([0-9]+)-([0-9a-f]{8}):([0-9]+)$", text)
        assert read == (source, str(steve_id), fingerprint.hex()[:8], str(n))


START = datetime(2026, 11, 22, 17, 49, 29, 250_000, tzinfo=UTC)
FACTS = EventFacts(
    transaction_id="steve:main:12-0a1b2c3d:1",
    external_subscription_id="sub-alice",
    metric_code="ev_charging_kwh",
    field_name="kwh",
    energy_wh=12_345,
    timestamp=datetime(2026, 11, 22, 19, 19, 29, 123_456, tzinfo=UTC),
    charge_box_id="CP-BERLIN-01",
    connector_id=1,
    started_at=START,
    stopped_at=START + timedelta(minutes=90, milliseconds=900),
    steve_transaction_id=12,
    id_tag="TAG-ALICE",
    send_id_tag=False,
)


def properties(**changes: Any) -> dict[str, str]:
    return build_event(dataclasses.replace(FACTS, **changes)).properties


class TestBuildEvent:
    def test_it_says_who_pays_for_what_and_when(self):
        event = build_event(FACTS)
        assert (event.transaction_id, event.code) == ("steve:main:12-0a1b2c3d:1", "ev_charging_kwh")
        assert (event.external_subscription_id, event.timestamp) == ("sub-alice", "1795375169.123")

    def test_its_properties_tell_the_session(self):
        assert properties() == {
            "kwh": "12.345",
            "charge_box_id": "CP-BERLIN-01",
            "connector_id": "1",
            "started_at": "2026-11-22T17:49:29Z",
            "stopped_at": "2026-11-22T19:19:30Z",
            "duration_s": "5400",
            "steve_transaction_id": "12",
            "id_tag_last4": "LICE",
        }

    def test_the_energy_stands_under_the_metrics_field(self):
        assert properties(field_name="energy")["energy"] == "12.345"
        assert build_event(dataclasses.replace(FACTS, field_name="energy")).value_field == "energy"

    @pytest.mark.parametrize("field_name", [*properties(send_id_tag=True)])
    def test_no_property_of_ours_takes_the_place_of_the_energy(self, field_name):
        assert properties(field_name=field_name, send_id_tag=True)[field_name] == "12.345"

    def test_a_correction_may_be_negative(self):
        assert properties(energy_wh=-500)["kwh"] == "-0.500"

    def test_the_same_facts_always_give_the_same_event(self):
        assert build_event(FACTS) == build_event(dataclasses.replace(FACTS))

    @given(energies, st.integers(0, 10**6), st.booleans())
    def test_it_may_be_sent(self, energy_wh, seconds, send_id_tag):
        stopped_at = START + timedelta(seconds=seconds)
        changes = {"energy_wh": energy_wh, "stopped_at": stopped_at, "timestamp": stopped_at}
        event = build_event(dataclasses.replace(FACTS, send_id_tag=send_id_tag, **changes))
        assert problems(event) == ()


class TestIdTag:
    @given(st.text(max_size=40))
    def test_it_is_never_whole_among_the_last_four_characters(self, id_tag):
        last4 = properties(id_tag=id_tag)["id_tag_last4"]
        assert len(last4) <= 4
        assert id_tag.endswith(last4)
        assert last4 != id_tag or not id_tag

    def test_it_is_nowhere_unless_asked_for(self):
        assert "TAG-ALICE" not in properties().values()

    def test_it_is_whole_when_asked_for(self):
        assert properties(send_id_tag=True)["id_tag"] == "TAG-ALICE"


# -- settling ----------------------------------------------------------------------------------------

LIMIT_WH = 50_000


PERIOD = datetime(2026, 3, 1, tzinfo=UTC)


def form(row: str, period_from: datetime = PERIOD) -> EventForm:
    return EventForm(row, "ev_charging_kwh", "kwh", period_from)


def sent(event_id: int, energy_wh: int, row: str = "row-1") -> KnownEvent:
    return KnownEvent(event_id, energy_wh, attempted=True, form=form(row))


def waiting(event_id: int, energy_wh: int, row: str = "row-1") -> KnownEvent:
    return KnownEvent(event_id, energy_wh, attempted=False, form=form(row))


def billing(energy_wh: int, *events: KnownEvent, row: str = "row-1") -> Settlement:
    return settle(
        energy_wh=energy_wh,
        outcome="bill",
        reason=None,
        form=form(row),
        events=events,
        max_auto_correction_wh=LIMIT_WH,
    )


def ending(outcome: str, reason: Reason, energy_wh: int, *events: KnownEvent) -> Settlement:
    return settle(
        energy_wh=energy_wh,
        outcome=outcome,
        reason=reason,
        form=None,
        events=events,
        max_auto_correction_wh=LIMIT_WH,
    )


def held(reason: Reason, rest_wh: int, *void: int) -> Settlement:
    return Settlement(void, rest_state="held", rest_reason=reason, rest_wh=rest_wh)


class TestFirstBill:
    def test_all_energy_becomes_one_event(self):
        assert billing(12_345) == Settlement(bill_wh=12_345)

    def test_deciding_the_same_again_changes_nothing(self):
        assert billing(12_345, waiting(1, 12_345)) == Settlement()

    def test_an_event_that_was_never_attempted_is_replaced_when_the_energy_changes(self):
        assert billing(13_000, waiting(1, 12_345)) == Settlement((1,), bill_wh=13_000)

    def test_an_event_that_was_never_attempted_is_replaced_when_another_row_bills(self):
        assert billing(12_345, waiting(1, 12_345), row="row-2") == Settlement((1,), bill_wh=12_345)

    def test_an_event_that_waited_until_its_period_closed_is_replaced(self):
        late = KnownEvent(1, 12_345, attempted=False, form=form("row-1", PERIOD - timedelta(days=28)))
        assert billing(12_345, late) == Settlement((1,), bill_wh=12_345)

    def test_however_large_it_needs_no_approval(self):
        assert billing(400_000) == Settlement(bill_wh=400_000)

    def test_no_energy_makes_no_event(self):
        assert billing(0) == Settlement()
        assert billing(0, waiting(1, 12_345)) == Settlement((1,))


class TestCorrection:
    def test_what_came_on_top_is_sent(self):
        assert billing(13_000, sent(1, 12_345)) == Settlement(bill_wh=655, correction=True)

    def test_it_counts_earlier_corrections(self):
        assert billing(14_000, sent(1, 12_345), sent(2, 655)) == Settlement(bill_wh=1_000, correction=True)

    def test_one_that_was_never_attempted_is_replaced(self):
        found = billing(14_000, sent(1, 12_345), waiting(2, 655))
        assert found == Settlement((2,), bill_wh=1_655, correction=True)

    def test_one_that_waits_and_still_holds_stays(self):
        assert billing(13_000, sent(1, 12_345), waiting(2, 655)) == Settlement()

    def test_one_that_waits_is_taken_back_when_the_energy_returns(self):
        assert billing(12_345, sent(1, 12_345), waiting(2, 655)) == Settlement((2,))

    def test_one_that_was_approved_above_the_limit_stays(self):
        assert billing(100_000, sent(1, 12_345), waiting(2, 87_655)) == Settlement()

    def test_at_the_limit_it_is_sent(self):
        assert billing(62_345, sent(1, 12_345)) == Settlement(bill_wh=50_000, correction=True)

    def test_above_the_limit_it_waits_for_approval(self):
        assert billing(62_346, sent(1, 12_345)) == held(Reason.CHANGED_AFTER_BILLING, 50_001)

    def test_less_than_was_billed_is_held_for_a_credit_note_with_its_amount(self):
        assert billing(12_000, sent(1, 12_345)) == held(Reason.REFUND_BY_CREDIT_NOTE, -345)

    def test_what_was_sent_stays_when_another_row_bills_now(self):
        assert billing(12_345, sent(1, 12_345), row="row-2") == Settlement()


class TestChangeOfMind:
    """A session that was to be billed is held or excluded now, or the other way round."""

    def test_a_hold_keeps_all_energy_with_its_reason(self):
        assert ending("hold", Reason.UNMAPPED_TAG, 12_345) == held(Reason.UNMAPPED_TAG, 12_345)

    def test_an_exclusion_keeps_all_energy_with_its_reason(self):
        expected = Settlement(rest_state="excluded", rest_reason=Reason.BELOW_MINIMUM, rest_wh=300)
        assert ending("exclude", Reason.BELOW_MINIMUM, 300) == expected

    def test_negative_energy_counts_as_none(self):
        assert ending("hold", Reason.NEGATIVE_ENERGY, -500) == held(Reason.NEGATIVE_ENERGY, 0)

    def test_an_event_that_was_never_attempted_is_taken_back(self):
        assert ending("hold", Reason.IMPLAUSIBLE, 900_000, waiting(1, 12_345)) == held(
            Reason.IMPLAUSIBLE, 900_000, 1
        )

    def test_what_was_sent_is_not(self):
        assert ending("hold", Reason.IMPLAUSIBLE, 12_345, sent(1, 12_345)) == Settlement()

    def test_what_came_on_top_of_what_was_sent_is_held(self):
        found = ending("hold", Reason.IMPLAUSIBLE, 900_000, sent(1, 12_345), waiting(2, 655))
        assert found == held(Reason.CHANGED_AFTER_BILLING, 887_655, 2)

    def test_a_session_that_turned_negative_after_billing_is_to_be_credited_in_full(self):
        found = ending("hold", Reason.NEGATIVE_ENERGY, -500, sent(1, 12_345))
        assert found == held(Reason.REFUND_BY_CREDIT_NOTE, -12_345)

    def test_a_session_that_turned_out_empty_after_billing_is_to_be_credited_in_full(self):
        found = ending("exclude", Reason.ZERO_ENERGY, 0, sent(1, 12_345))
        assert found == held(Reason.REFUND_BY_CREDIT_NOTE, -12_345)


known_events = st.lists(
    st.tuples(
        st.booleans(), st.one_of(st.sampled_from([1_000, 2_000, 3_000, -1_000]), st.integers(-(10**5), 10**6))
    ),
    max_size=4,
)
outcomes = st.sampled_from(
    [
        ("bill", None),
        ("bill", None),
        ("hold", Reason.CLOCK_SKEW),
        ("hold", Reason.LATE_PERIOD),
        ("exclude", Reason.BEFORE_GO_LIVE),
    ]
)
read_energies = st.one_of(
    st.sampled_from([-1, 0, 1, 1_000, 2_000, 3_000, 6_000]), st.integers(-(10**6), 10**6)
)


@dataclasses.dataclass(frozen=True)
class Case:
    energy_wh: int
    outcome: str
    reason: Reason | None
    row: str
    limit_wh: int
    events: tuple[KnownEvent, ...]
    negative_is_honoured: bool

    def settle(self) -> Settlement:
        return settle(
            energy_wh=self.energy_wh,
            outcome=self.outcome,
            reason=self.reason,
            form=form(self.row) if self.outcome == "bill" else None,
            events=self.events,
            max_auto_correction_wh=self.limit_wh,
            negative_is_honoured=lambda _energy_wh: self.negative_is_honoured,
        )

    def after(self, found: Settlement) -> Case:
        """The same case once the settlement was written."""
        kept = tuple(event for event in self.events if event.event_id not in found.void)
        new = () if found.bill_wh is None else (waiting(99, found.bill_wh, self.row),)
        return dataclasses.replace(self, events=kept + new)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    outcome, reason = draw(outcomes)
    events = tuple(
        KnownEvent(number, energy_wh, attempted, form(draw(st.sampled_from(["row-1", "row-1", "row-2"]))))
        for number, (attempted, energy_wh) in enumerate(draw(known_events), 1)
    )
    exact = sum(event.energy_wh for event in events)  # so that "nothing has changed" is often met
    energy_wh = draw(st.one_of(read_energies, st.just(exact), st.integers(-2, 2).map(exact.__add__)))
    limit_wh = draw(st.sampled_from([0, 1, 1_000, 50_000]))
    return Case(energy_wh, outcome, reason, "row-1", limit_wh, events, draw(st.booleans()))


def by_the_book(case: Case) -> Settlement:
    """The oracle: books of two columns, what Lago may know and what it cannot, settled line by line."""
    delivered = case.energy_wh * (case.energy_wh > 0)
    at_lago = [event for event in case.events if event.attempted]
    at_home = [event for event in case.events if not event.attempted]
    missing = delivered - sum(event.energy_wh for event in at_lago)
    planned = sum(event.energy_wh for event in at_home)
    rows = {event.form.lago_subscription_id for event in at_home} | {case.row}
    if case.outcome == "bill" and planned == missing and len(rows) == 1:
        return Settlement()
    void = tuple(event.event_id for event in at_home)
    if case.reason is Reason.BY_OPERATOR:
        if at_lago and missing == 0:
            return Settlement(void)
        return Settlement(void, rest_state="excluded", rest_reason=case.reason, rest_wh=missing)
    state = {"hold": "held", "exclude": "excluded"}.get(case.outcome)
    if not at_lago and state is not None:
        return Settlement(void, rest_state=state, rest_reason=case.reason, rest_wh=delivered)
    if missing == 0:
        return Settlement(void)
    if not at_lago:
        return Settlement(void, bill_wh=missing)
    if missing < 0 and (state is not None or not case.negative_is_honoured):
        return held(Reason.REFUND_BY_CREDIT_NOTE, missing, *void)
    if state is not None or not -case.limit_wh <= missing <= case.limit_wh:
        return held(Reason.CHANGED_AFTER_BILLING, missing, *void)
    return Settlement(void, bill_wh=missing, correction=True)


@settings(max_examples=500)
@given(cases())
def test_settling_agrees_with_the_book(case):
    assert case.settle() == by_the_book(case)


@settings(max_examples=300)
@given(cases())
def test_the_parts_always_add_up_to_the_energy_read(case):
    found = case.settle()
    stays_wh = sum(event.energy_wh for event in case.events if event.event_id not in found.void)
    assert stays_wh + (found.bill_wh or 0) + found.rest_wh == max(case.energy_wh, 0)


@settings(max_examples=300)
@given(cases())
def test_what_lago_may_know_is_never_taken_back(case):
    attempted = {event.event_id for event in case.events if event.attempted}
    assert not attempted & set(case.settle().void)


@settings(max_examples=300)
@given(cases())
def test_negative_energy_is_sent_only_as_a_correction_that_lago_honours_and_nothing_beside_a_rest(case):
    found = case.settle()
    assert found.bill_wh is None or found.rest_state is None
    assert found.bill_wh is None or found.bill_wh > 0 or (found.correction and case.negative_is_honoured)
    assert (found.rest_state is None) == (found.rest_reason is None)
    assert found.rest_state is not None or found.rest_wh == 0


@settings(max_examples=300)
@given(cases())
def test_settling_twice_does_nothing_more(case):
    first = case.settle()
    second = case.after(first).settle()
    assert second == dataclasses.replace(first, void=(), bill_wh=None, correction=False)


@settings(max_examples=300)
@given(cases())
def test_a_session_is_only_billed_when_that_was_decided(case):
    assert case.outcome == "bill" or case.settle().bill_wh is None
