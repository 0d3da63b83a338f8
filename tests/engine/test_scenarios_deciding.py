"""What must never happen again, by the numbers of docs/reference/scenarios.md: deciding."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ocpp_billing.billing import review
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.models import ChargingSession, MalformedRow
from ocpp_billing.mappings.store import (
    change_mapping,
    delete_mapping,
    end_mapping,
    switch_mapping,
)
from ocpp_billing.simulators.steve import Sample

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOON = datetime(2026, 3, 17, 12, tzinfo=UTC)
# 3.12 can what 3.14 can.
RELEASES = ["3.7.1", "3.9.0", "3.10", "3.11", pytest.param("3.12", marks=pytest.mark.long), "3.14.1"]
every_release = pytest.mark.parametrize("release", RELEASES)
# Where it is decided and not read that matters: between two of these nothing changes that a decision looks at.
one_of_each_kind = pytest.mark.parametrize(
    "release",
    [
        "3.7.1",
        "3.9.0",
        *(pytest.param(r, marks=pytest.mark.long) for r in ("3.10", "3.11", "3.12")),
        "3.14.1",
    ],
)
every_store = pytest.mark.parametrize("store", ["postgres", "postgres-1.32", "postgres-1.30", "clickhouse"])


@pytest.fixture
def live(world):
    """Alice and Bob pay for a tag each, and billing is live from the beginning of the world."""
    world.alice = world.customer("alice") and world.map("TAG-ALICE", "alice")
    world.payer("TAG-BOB", "bob")
    world.go_live()
    return world


def session_of(steve_id):
    return ChargingSession.objects.get(steve_id=steve_id, superseded_at=None)


# -- 8: mappings that change between the session and the run ---------------------------------------------


def test_row_08_a_mapping_made_after_the_session_ended_bills_it(world):
    world.customer("alice")
    world.go_live()
    session = world.session("TAG-ALICE", energy_wh=1_000)
    world.map("TAG-ALICE", "alice")
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert world.lago_wh("sub-alice") == 1_000
    world.assert_conserved()


def test_row_08_a_mapping_changed_after_the_session_ended_leaves_it_with_whom_it_began(live):
    session = live.session("TAG-ALICE", start=2 * HOUR, stop=HOUR, energy_wh=1_000)
    change_mapping(live.alice.pk, at=live.at(HOUR / 2), customer="bob", subscription=None, by="test")
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (1_000, 0)
    live.assert_conserved()


def test_row_08_a_mapping_put_right_from_its_beginning_bills_the_right_one(live):
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.pause()
    live.sync()
    assert live.state_of(session) == ("queued", None)
    change_mapping(live.alice.pk, at=live.alice.valid_from, customer="bob", subscription=None, by="test")
    live.resume()
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (0, 1_000)
    live.assert_conserved()


def test_row_08_a_mapping_switched_off_after_the_session_began_still_bills_it(live):
    session = live.session("TAG-ALICE", start=2 * HOUR, stop=HOUR, energy_wh=1_000)
    after = live.session("TAG-ALICE", "CP-2", start=HOUR / 3, stop=HOUR / 4, energy_wh=70)
    switch_mapping(live.alice.pk, active=False, at=live.at(90 * timedelta(minutes=1)), by="test")
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.state_of(after) == ("held", "mapping_inactive")
    assert live.lago_wh() == 1_000
    live.assert_conserved()


def test_row_08_a_mapping_ended_before_the_session_began_does_not_bill_it(live):
    end_mapping(live.alice.pk, at=live.at(3 * HOUR), by="test")
    session = live.session("TAG-ALICE", start=2 * HOUR, stop=HOUR)
    live.sync()
    assert live.state_of(session) == ("held", "unmapped_tag")
    assert live.posts() == []
    live.assert_conserved()


def test_row_08_a_mapping_deleted_before_the_run_holds_the_session_until_there_is_one_again(live):
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.pause()
    live.sync()
    UsageEvent.objects.get()  # queued by the mapping, so the mapping cannot go
    with pytest.raises(Exception, match="must stay to explain them"):
        delete_mapping(live.alice.pk, by="test")
    review.exclude(session_of(session).pk, note="not yet", by="test")
    live.sync()
    delete_mapping(live.alice.pk, by="test")
    another = live.session("TAG-ALICE", energy_wh=500)
    live.resume()
    live.sync()
    assert live.state_of(session) == ("excluded", "by_operator")
    assert live.state_of(another) == ("held", "unmapped_tag")
    assert live.posts() == []
    live.map("TAG-ALICE", "alice")
    live.sync()
    assert live.state_of(another) == ("confirmed", None)
    assert live.lago_wh_by_session() == {another: 500}
    live.assert_conserved()


@one_of_each_kind
def test_row_08_a_tag_that_was_given_another_parent_pays_as_it_did_when_the_session_began(world):
    world.customer("old")
    world.customer("new")
    world.map("OLD-FLEET", "old")
    world.map("NEW-FLEET", "new")
    world.go_live()
    for tag, parent in (("OLD-FLEET", None), ("NEW-FLEET", None), ("VAN", "OLD-FLEET")):
        world.steve.add_tag(tag, parent=parent)
    world.sync()  # the parent is read
    world.clock.advance(3 * HOUR)
    before = world.session("VAN", start=2 * HOUR, stop=HOUR, energy_wh=1_000)
    world.steve.set_parent("VAN", "NEW-FLEET")
    world.sync()
    world.clock.advance(3 * HOUR)
    after = world.session("VAN", start=2 * HOUR, stop=HOUR, energy_wh=70)
    world.sync()
    assert world.state_of(before) == world.state_of(after) == ("confirmed", None)
    assert (world.lago_wh("sub-old"), world.lago_wh("sub-new")) == (1_000, 70)
    world.assert_conserved()


# -- 14, 30: stops that change after they were billed ----------------------------------------------------


@pytest.mark.parametrize("release", ["3.7.1", "3.9.0", "3.10", "3.11"])
@pytest.mark.parametrize("by", ["the same charge box", "another charge box"])
def test_row_14_30_a_stop_told_again_with_another_value_is_corrected_by_an_event(live, by):
    """Up to 3.11 the last stop counts, whoever sends it."""
    session = live.session("TAG-ALICE", "CP-1", stop=HOUR, start_wh=1_000, stop_wh=6_000)
    live.sync()
    assert live.lago_wh() == 5_000
    box = "CP-1" if by == "the same charge box" else "CP-9"
    assert live.stop(session, box, at=HOUR - timedelta(seconds=7), meter_wh=6_700) is None
    live.clock.advance(HOUR)
    live.sync()
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    kinds = UsageEvent.objects.order_by("n").values_list("kind", "energy_wh", "state")
    assert list(kinds) == [("original", 5_000, "confirmed"), ("correction", 700, "confirmed")]
    assert live.lago_wh_by_session() == {session: 5_700}
    live.assert_conserved()


@pytest.mark.parametrize("release", ["3.12", "3.14.1"])
def test_row_30_a_stop_told_again_or_by_a_stranger_changes_nothing_where_steve_refuses_it(live):
    session = live.session("TAG-ALICE", "CP-1", stop=HOUR, start_wh=1_000, stop_wh=6_000)
    live.sync()
    assert live.stop(session, "CP-1", at=HOUR - timedelta(seconds=7), meter_wh=6_700) is not None
    assert live.stop(session, "CP-9", at=HOUR - timedelta(seconds=9), meter_wh=9_000) is not None
    live.clock.advance(HOUR)
    live.sync()
    assert live.lago_wh_by_session() == {session: 5_000}
    assert UsageEvent.objects.count() == 1
    live.assert_conserved()


@every_release
def test_row_14_30_the_operators_stop_and_then_the_stations_own_are_billed_as_the_station_says(live):
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    live.steve.meter_values("CP-1", 1, [Sample(live.at(2 * HOUR), "6000")], session)
    live.steve.manual_stop(session)
    live.sync()
    shows_values = live.steve.release.version >= (3, 12, 0)
    if shows_values:  # the evidence agrees
        assert live.state_of(session) == ("confirmed", None)
        assert live.lago_wh() == 5_000
    else:
        assert live.state_of(session) == ("held", "manual_stop_without_evidence")
        assert live.posts() == []
    live.clock.advance(HOUR)
    assert live.stop(session, at=timedelta(minutes=1), meter_wh=8_500) is None
    live.sync()
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh_by_session() == {session: 7_500}
    assert UsageEvent.objects.count() == (2 if shows_values else 1)
    live.assert_conserved()


@every_store
def test_row_14_a_stop_revised_before_anything_was_sent_is_replaced_not_corrected(live):
    live.pause()
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    live.steve.meter_values("CP-1", 1, [Sample(live.at(2 * HOUR), "6000")], session)
    live.steve.manual_stop(session)
    live.sync()
    assert live.state_of(session) == ("queued", None)
    live.stop(session, at=timedelta(minutes=1), meter_wh=8_500)
    live.resume()
    live.sync()
    (entry,) = live.lago.ledger()
    assert entry["transaction_id"].endswith(":2")  # the first was never sent
    assert live.lago_wh_by_session() == {session: 7_500}
    live.assert_conserved()


# -- 19: the last second of a period ----------------------------------------------------------------------


@pytest.fixture
def end_of_march(world):
    """The first minutes of April; Lago bills at ten past."""
    world.clock.set(datetime(2026, 3, 31, 22, tzinfo=UTC))
    world.begins_at = datetime(2026, 1, 1, tzinfo=UTC)
    world.payer("TAG-ALICE", "alice", billing_time="calendar")
    world.go_live()
    world.sync()
    world.last = world.start("TAG-ALICE", at=HOUR)
    world.clock.set(datetime(2026, 4, 1, 0, 0, 5, tzinfo=UTC))
    world.stop(world.last, at=datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC), meter_wh=6_000)
    return world


@one_of_each_kind
@pytest.mark.parametrize(("hour", "minute"), [(0, 5), (0, 10), (0, 15)])
def test_row_19_a_session_of_the_last_second_read_after_midnight_is_held_as_late(end_of_march, hour, minute):
    world = end_of_march
    world.clock.set(datetime(2026, 4, 1, hour, minute, 1, tzinfo=UTC))
    world.sync()
    world.clock.set(datetime(2026, 4, 1, 6, tzinfo=UTC))
    world.sync()
    assert world.state_of(world.last) == ("held", "late_period")
    assert world.posts() == []
    world.assert_conserved()


@every_store
def test_row_19_a_session_of_the_last_second_is_billed_now_where_the_policy_says_so(end_of_march):
    world = end_of_march
    world.settings["LATE_POLICY"] = "current_period"
    world.clock.set(datetime(2026, 4, 1, 0, 10, 1, tzinfo=UTC))
    world.sync()
    assert world.state_of(world.last) == ("confirmed", None)
    (entry,) = world.lago.ledger()
    assert (entry["state"], entry["timestamp"]) == ("open", "2026-04-01T00:10:01.000Z")
    assert entry["properties"]["stopped_at"] == "2026-03-31T23:59:59Z"
    world.lago.close_period("sub-alice")
    assert world.lago_wh_by_session() == {world.last: 5_000}
    world.assert_conserved()


@every_store
def test_row_19_a_session_of_the_last_minute_read_before_midnight_is_on_the_months_invoice(world):
    world.clock.set(datetime(2026, 3, 31, 23, 59, 40, tzinfo=UTC))
    world.begins_at = datetime(2026, 1, 1, tzinfo=UTC)
    world.payer("TAG-ALICE", "alice", billing_time="calendar")
    world.go_live()
    session = world.session("TAG-ALICE", start=HOUR, stop=timedelta(seconds=5), energy_wh=5_000)
    world.sync()
    world.lago.close_period("sub-alice")
    (entry,) = world.lago.ledger()
    assert entry["state"] == "invoiced"
    assert world.lago_wh_by_session() == {session: 5_000}
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    world.assert_conserved()


# -- 20: amounts ------------------------------------------------------------------------------------------


@every_store
@pytest.mark.parametrize(
    ("energy_wh", "kwh"),
    [(1, "0.001"), (12_900, "12.900"), (16_777_217, "16777.217"), (2_147_483_647, "2147483.647")],
)
def test_row_20_every_wh_arrives_however_much_it_is(live, energy_wh, kwh):
    limits = {"max_session_kwh": "3000000", "max_power_kw": "3000000"}
    session = live.session("TAG-ALICE", start_wh=0, stop_wh=energy_wh)
    live.sync(**limits)
    assert live.state_of(session) == ("confirmed", None)
    (entry,) = live.lago.ledger()
    assert entry["properties"]["kwh"] == kwh
    assert live.lago_wh() == energy_wh


def test_row_20_a_thousand_amounts_add_up_to_the_wh(live):
    amounts = [1 + number * 7 for number in range(300)]
    for number, energy_wh in enumerate(amounts):
        live.session("TAG-ALICE", f"CP-{number}", energy_wh=energy_wh)
    live.sync()
    assert live.lago_wh() == sum(amounts)
    live.assert_conserved()


# -- 26, 27: spelling and clocks --------------------------------------------------------------------------


@one_of_each_kind
def test_row_26_a_tag_is_one_tag_in_any_case_and_with_accents_or_blanks(live):
    spelled = ["TAG-ALICE", "tag-alice", "Tag-Alice", "TÄG-ALICE"]
    sessions = [live.session(tag, f"CP-{number}", energy_wh=1_000) for number, tag in enumerate(spelled)]
    live.sync()
    assert [live.state_of(number) for number in sessions] == [("confirmed", None)] * len(spelled)
    assert live.lago_wh("sub-alice") == 4_000
    live.assert_conserved()


@one_of_each_kind
def test_row_26_a_tag_mapped_in_upper_and_used_in_lower_case_keeps_one_history(live):
    change_mapping(
        live.alice.pk, at=live.at(90 * timedelta(minutes=1)), customer="bob", subscription=None, by="t"
    )
    live.session("tag-alice", "CP-1", start=2 * HOUR, stop=HOUR, energy_wh=1_000)
    live.session("TAG-alice", "CP-2", start=HOUR, stop=HOUR / 2, energy_wh=70)
    live.sync()
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (1_000, 70)
    live.assert_conserved()


@every_release
def test_row_27_clocks_that_cannot_be_right_are_held_and_the_rest_goes_on(live):
    before = live.session("TAG-BOB", "CP-2", energy_wh=1_000)
    reset = live.session(
        "TAG-ALICE", "CP-3", 1, datetime(1970, 1, 2, tzinfo=UTC), datetime(1970, 1, 2, 1, tzinfo=UTC)
    )
    ahead = live.session(
        "TAG-ALICE", "CP-4", 1, live.clock.now() + 3 * DAY, live.clock.now() + 3 * DAY + HOUR
    )
    after = live.session("TAG-BOB", "CP-2", start=HOUR, stop=HOUR / 2, energy_wh=2_000)
    live.sync()
    refuses = live.steve.release.version >= (3, 12, 0)  # such a stop: the session stays active
    assert live.state_of(reset) == ("held", "clock_skew")
    assert live.state_of(ahead) == (("open", None) if refuses else ("held", "clock_skew"))
    assert live.state_of(before) == live.state_of(after) == ("confirmed", None)
    live.clock.advance(4 * DAY)  # waiting does not make a wrong clock right
    live.sync()
    assert live.state_of(reset) == ("held", "clock_skew")
    assert live.state_of(ahead)[0] in {"held", "stuck"}
    assert live.lago_wh_by_session() == {before: 1_000, after: 2_000}
    live.assert_conserved()


@pytest.mark.parametrize("release", ["3.7.1"])
def test_row_27_a_start_that_steve_lost_is_held_and_the_rest_goes_on(live):
    lost = live.start("TAG-ALICE", "CP-3", at=datetime(2040, 1, 1, tzinfo=UTC), meter_wh=1_000)
    after = live.session("TAG-BOB", "CP-2", energy_wh=2_000)
    live.sync()
    assert live.state_of(lost) == ("open", None)
    live.stop(lost, "CP-3", at=timedelta(minutes=1), meter_wh=4_000)
    live.sync()
    assert live.state_of(lost) == ("held", "clock_skew")
    assert "start time is missing" in live.words_about(lost)
    assert live.lago_wh_by_session() == {after: 2_000}
    review.accept(session_of(lost).pk, note="the driver confirms it", by="test")
    live.sync()
    assert live.lago_wh_by_session() == {after: 2_000, lost: 3_000}
    assert not MalformedRow.objects.exists()
    live.assert_conserved()


# -- 31: two sessions on one connector --------------------------------------------------------------------


def two_on_one_connector(world, first_wh, second_wh):
    """The first begins at 7:00, the second at 8:00 and stops at 9:00; the first stops late, at 10:00."""
    first = world.start("TAG-ALICE", at=5 * HOUR, meter_wh=first_wh[0])
    second = world.start("TAG-BOB", at=4 * HOUR, meter_wh=second_wh[0])
    world.stop(second, at=3 * HOUR, meter_wh=second_wh[1])
    world.sync()
    world.stop(first, at=2 * HOUR, meter_wh=first_wh[1])
    world.sync()
    return first, second


@one_of_each_kind
def test_row_31_where_only_the_times_overlap_both_are_billed_and_it_is_flagged(live):
    first, second = two_on_one_connector(live, (10_900, 11_500), (11_500, 12_000))
    assert live.state_of(first) == live.state_of(second) == ("confirmed", None)
    assert session_of(first).flags == [{"kind": "time_overlap", "with": second}]
    assert live.lago_wh_by_session() == {first: 600, second: 500}
    live.assert_conserved()


@one_of_each_kind
def test_row_31_where_the_registers_overlap_too_one_is_held(live):
    first, second = two_on_one_connector(live, (10_900, 11_501), (11_500, 12_000))
    assert live.state_of(second) == ("confirmed", None)
    assert live.state_of(first) == ("held", "register_overlap")
    assert f"transaction {second}" in live.words_about(first)
    assert session_of(first).flags == []
    assert live.lago_wh_by_session() == {second: 500}
    live.assert_conserved()


def test_row_31_where_both_are_read_at_once_and_overlap_in_both_none_is_billed(live):
    first = live.start("TAG-ALICE", at=5 * HOUR, meter_wh=10_900)
    second = live.start("TAG-BOB", at=4 * HOUR, meter_wh=11_500)
    live.stop(second, at=3 * HOUR, meter_wh=12_000)
    live.stop(first, at=2 * HOUR, meter_wh=12_000)
    live.sync()
    assert live.state_of(first) == live.state_of(second) == ("held", "register_overlap")
    assert live.posts() == []
    live.assert_conserved()


@one_of_each_kind
def test_row_31_where_only_the_registers_overlap_both_are_billed_and_it_is_flagged(live):
    first = live.session("TAG-ALICE", start=6 * HOUR, stop=5 * HOUR, start_wh=10_000, stop_wh=12_000)
    second = live.session("TAG-BOB", start=4 * HOUR, stop=3 * HOUR, start_wh=11_000, stop_wh=13_000)
    third = live.session("TAG-BOB", start=2 * HOUR, stop=HOUR, start_wh=13_000, stop_wh=14_000)
    live.sync()
    assert session_of(first).flags == [{"kind": "register_overlap", "with": second}]
    assert session_of(second).flags == [{"kind": "register_overlap", "with": first}]
    assert session_of(third).flags == []  # touching is not overlapping
    assert live.lago_wh_by_session() == {first: 2_000, second: 2_000, third: 1_000}
    live.assert_conserved()


def test_row_31_a_charger_that_counts_from_zero_in_each_session_is_not_flagged(live):
    sessions = [
        live.session("TAG-ALICE", start=hours * HOUR, stop=(hours - 1) * HOUR, start_wh=0, stop_wh=5_000)
        for hours in (6, 4, 2)
    ]
    live.sync()
    assert [session_of(number).flags for number in sessions] == [[], [], []]
    assert live.lago_wh() == 15_000
    live.assert_conserved()


def test_row_31_a_flag_goes_when_a_revised_stop_takes_its_cause_away(live):
    four_hours_ago = live.at(4 * HOUR)
    first = live.start("TAG-ALICE", at=5 * HOUR, meter_wh=1_000)
    live.steve.meter_values("CP-1", 1, [Sample(live.at(3 * HOUR), "4000")], first)
    live.steve.manual_stop(first)
    second = live.session("TAG-BOB", start=four_hours_ago, stop=HOUR, start_wh=4_000, stop_wh=6_000)
    live.sync()
    assert session_of(first).flags == [{"kind": "time_overlap", "with": second}]
    assert live.stop(first, at=four_hours_ago, meter_wh=4_000) is None
    live.clock.advance(HOUR)
    live.sync()
    assert session_of(first).flags == []
    assert live.lago_wh_by_session() == {first: 3_000, second: 2_000}
    live.assert_conserved()


# -- 32: closed by hand without meter values --------------------------------------------------------------


@one_of_each_kind
def test_row_32_a_session_closed_by_hand_without_meter_values_is_held_never_excluded_as_zero(live):
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    live.steve.note_delivered(session, 3_000)
    live.steve.manual_stop(session)
    live.sync()
    assert (session_of(session).stop_wh, session_of(session).stop_actor) == (1_000, "manual")
    assert live.state_of(session) == ("held", "manual_stop_without_evidence")
    assert "nothing shows what was delivered" in live.words_about(session)
    following = live.session("TAG-BOB", start=2 * HOUR, stop=HOUR, start_wh=4_000, stop_wh=4_500)
    live.sync()
    live.sync()
    assert live.state_of(session) == ("held", "manual_stop_without_evidence")
    assert "4.000 kWh" in live.words_about(session)
    review.enter_reading(
        session_of(session).pk, stop_wh=4_000, stopped_at=live.at(2 * HOUR), note="read off", by="test"
    )
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh_by_session() == {session: 3_000, following: 500}
    live.assert_conserved()


@one_of_each_kind
def test_row_32_the_stations_own_stop_that_comes_later_is_what_is_billed(live):
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    live.steve.manual_stop(session)
    live.sync()
    assert live.state_of(session) == ("held", "manual_stop_without_evidence")
    live.clock.advance(5 * DAY)
    assert live.stop(session, at=5 * DAY + HOUR, meter_wh=4_000) is None
    for _ in range(3):
        live.sync()
        live.clock.advance(DAY)
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh_by_session() == {session: 3_000}
    live.assert_conserved()


# -- 39: subscriptions that change around a session -------------------------------------------------------


@pytest.fixture
def changing(world):
    """Alice's subscription may change; a dearer plan waits."""
    world.payer("TAG-ALICE", "alice")
    world.plan("ev_plus", amount_cents=1_000)
    world.go_live()
    return world


@every_store
def test_row_39_upgraded_in_the_middle_of_a_session_it_is_billed_on_the_new_row(changing):
    world = changing
    session = world.start("TAG-ALICE", at=2 * HOUR)
    world.sync()
    world.lago.upgrade("sub-alice", "ev_plus")
    world.clock.advance(HOUR)
    world.stop(session, at=timedelta(minutes=5), meter_wh=6_000)
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    (entry,) = world.lago.ledger()
    assert entry["subscription_lago_id"] == world.lago.books.active("sub-alice").lago_id
    assert world.lago_wh_by_session() == {session: 5_000}
    world.assert_conserved()


@every_store
@pytest.mark.parametrize("policy", ["hold", "current_period"])
def test_row_39_upgraded_between_stop_and_delivery_it_is_held_or_billed_now(changing, policy):
    world = changing
    world.pause()
    session = world.session("TAG-ALICE", energy_wh=5_000)
    world.sync()
    world.lago.upgrade("sub-alice", "ev_plus")  # bills the old row at once, without this session
    world.clock.advance(HOUR)
    world.resume()
    world.sync(late_policy=policy)
    world.sync(late_policy=policy)
    if policy == "hold":
        assert world.state_of(session) == ("held", "late_period")
        assert world.posts() == []
    else:
        assert world.state_of(session) == ("confirmed", None)
        (entry,) = world.lago.ledger()
        assert entry["subscription_lago_id"] == world.lago.books.active("sub-alice").lago_id
        assert world.lago_wh_by_session() == {session: 5_000}
    world.assert_conserved()


def test_row_39_ended_in_the_middle_of_a_session_it_is_held(changing):
    world = changing
    session = world.start("TAG-ALICE", at=2 * HOUR)
    world.sync()
    world.lago.terminate("sub-alice")
    world.clock.advance(HOUR)
    world.stop(session, at=timedelta(minutes=5), meter_wh=6_000)
    world.sync()
    assert world.state_of(session) == ("held", "no_subscription")
    assert world.posts() == []
    world.assert_conserved()


@every_store
def test_row_39_ended_between_stop_and_delivery_it_is_held(changing):
    world = changing
    world.pause()
    session = world.session("TAG-ALICE", energy_wh=5_000)
    world.sync()
    world.lago.terminate("sub-alice")
    world.clock.advance(HOUR)
    world.resume()
    world.sync()
    assert world.state_of(session) == ("held", "late_period")
    assert world.posts() == []
    world.assert_conserved()


def test_row_39_started_in_the_middle_of_a_session_it_is_billed(world):
    world.plan()
    world.map("TAG-ALICE", "alice")
    world.go_live()
    session = world.start("TAG-ALICE", at=2 * HOUR)
    world.sync()
    world.customer("alice", since=world.at(HOUR))
    world.stop(session, at=timedelta(minutes=5), meter_wh=6_000)
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert world.lago_wh_by_session() == {session: 5_000}
    world.assert_conserved()


def test_row_39_started_between_stop_and_delivery_it_is_held(world):
    world.plan()
    world.map("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("TAG-ALICE", start=2 * HOUR, stop=HOUR)
    world.sync()
    world.customer("alice", since=world.at(HOUR / 2))
    world.sync()
    assert world.state_of(session) == ("held", "no_subscription")
    assert world.posts() == []
    world.assert_conserved()


# -- 40: switched off for two days ------------------------------------------------------------------------


@pytest.mark.parametrize("bill_gap", [True, False])
def test_row_40_a_mapping_off_for_two_days_bills_the_gap_only_if_the_person_says_so(live, bill_gap):
    before = live.session("TAG-ALICE", "CP-1", start=2 * HOUR, stop=HOUR, energy_wh=1_000)
    live.sync()
    off_at = live.clock.now()
    off = switch_mapping(live.alice.pk, active=False, at=off_at, by="test")
    live.clock.advance(DAY)
    in_the_gap = live.session("TAG-ALICE", "CP-1", start=2 * HOUR, stop=HOUR, energy_wh=200)
    live.sync()
    assert live.state_of(in_the_gap) == ("held", "mapping_inactive")
    live.clock.advance(DAY)
    switch_mapping(off.pk, active=True, at=live.clock.now(), bill_gap=bill_gap, by="test")
    live.clock.advance(3 * HOUR)
    after = live.session("TAG-ALICE", "CP-1", start=2 * HOUR, stop=HOUR, energy_wh=30)
    live.sync()
    live.sync()
    assert live.state_of(before) == live.state_of(after) == ("confirmed", None)
    if bill_gap:
        assert live.state_of(in_the_gap) == ("confirmed", None)
        assert live.lago_wh_by_session() == {before: 1_000, in_the_gap: 200, after: 30}
    else:
        assert live.state_of(in_the_gap) == ("held", "mapping_inactive")
        assert live.lago_wh_by_session() == {before: 1_000, after: 30}
    live.assert_conserved()


# -- 41: a customer without a subscription ----------------------------------------------------------------


@every_store
def test_row_41_mapped_without_a_subscription_one_is_used_and_two_are_ambiguous(world):
    world.plan()
    world.map("TAG-ALICE", "alice")
    world.go_live()
    first = world.session("TAG-ALICE", energy_wh=1_000)
    world.sync()
    assert world.state_of(first) == ("held", "no_subscription")
    world.customer("alice", "home")
    world.clock.advance(HOUR)
    world.sync()
    assert world.state_of(first) == ("confirmed", None)
    world.customer("alice", "work")
    world.clock.advance(HOUR)
    second = world.session("TAG-ALICE", energy_wh=200)
    world.sync()
    assert world.state_of(second) == ("held", "ambiguous_subscription")
    assert (world.lago_wh("home"), world.lago_wh("work")) == (1_000, 0)
    review.assign(session_of(second).pk, customer="alice", subscription="work", note="", by="test")
    world.sync()
    assert world.state_of(second) == ("confirmed", None)
    assert (world.lago_wh("home"), world.lago_wh("work")) == (1_000, 200)
    world.assert_conserved()


def test_row_41_one_of_two_subscriptions_ends_and_the_other_is_used(world):
    world.customer("alice", "home")
    world.customer("alice", "work")
    world.map("TAG-ALICE", "alice")
    world.go_live()
    session = world.start("TAG-ALICE", at=2 * HOUR)
    world.lago.terminate("work")
    world.clock.advance(HOUR)
    world.stop(session, at=timedelta(minutes=5), meter_wh=1_200)
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert world.lago_wh("home") == 200
    world.assert_conserved()
