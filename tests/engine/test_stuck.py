"""Sessions that never stop by themselves: how they are found, what shows their energy, how they end.

Scenarios 13, 14, 25, 30, 31 and 32.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from ocpp_billing import effects
from ocpp_billing.accounts.models import AuditEntry
from ocpp_billing.billing import review
from ocpp_billing.billing.closing import ClosingError, close_in_steve, list_stuck, preview_close
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.models import ChargingSession, Source
from ocpp_billing.charging.stuck import DETAILS_PER_CYCLE
from ocpp_billing.cli import main
from ocpp_billing.simulators.server import Fault
from ocpp_billing.simulators.steve import Sample
from ocpp_billing.simulators.steve_recording import recording_offset
from ocpp_billing.steve.errors import SteveError
from ocpp_billing.sync.clients import open_clients

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
WITH_DETAILS = ("3.12", "3.14.1")
WITHOUT_DETAILS = ("3.7", "3.9", "3.11")
each_kind = pytest.mark.parametrize("release", [*WITHOUT_DETAILS, *WITH_DETAILS])
without_details = pytest.mark.parametrize("release", WITHOUT_DETAILS)
with_details = pytest.mark.parametrize("release", WITH_DETAILS)


@pytest.fixture
def live(world):
    """Billing is live, and TAG-ALICE pays."""
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    return world


# -- words for what the tests do and see ---------------------------------------------------------------


def row(steve_id):
    return ChargingSession.objects.get(steve_id=steve_id, superseded_at=None)


def evidence(steve_id):
    """Source and register of the evidence; None before there was a reason to look for any."""
    found = row(steve_id).evidence
    return None if found is None else (found["source"], found["stop_wh"])


def send_values(world, steve_id, *values, box="CP-1", connector=1):
    """Meter values of (how long ago, register in Wh) reach StEvE."""
    samples = [Sample(world.at(ago), str(register)) for ago, register in values]
    assert world.steve.meter_values(box, connector, samples, steve_id)


def abandoned(world, *values, start_wh=1_000, box="CP-1", connector=1):
    """A session of three hours ago whose stop never came, and the next one on its connector."""
    steve_id = world.start("TAG-ALICE", box, connector, 3 * HOUR, start_wh)
    if values:
        send_values(world, steve_id, *values, box=box, connector=connector)
    return steve_id


def newer(world, meter_wh=9_500, box="CP-1", connector=1):
    return world.session("TAG-ALICE", box, connector, 40 * MINUTE, 10 * MINUTE, meter_wh, meter_wh + 6_000)


def asked_for(world, steve_id):
    """How often StEvE was asked for a transaction by its id since the log was emptied."""
    by_id = re.compile(rf"transactionPk=([0-9,]*,)?{steve_id}(,|&|$)|/transactions/{steve_id}(\?|$)")
    return sum(bool(by_id.search(request["path"])) for request in world.steve.requests)


def details_read(world):
    """The transactions whose details StEvE was asked for, in order."""
    paths = [request["path"] for request in world.steve.requests]
    return [int(path.rsplit("/", 1)[1]) for path in paths if re.search(r"/transactions/[0-9]+$", path)]


# -- what makes a session stuck ------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["3.14.1"])
def test_finished_sessions_that_steve_keeps_open_become_stuck_with_what_they_delivered(world):
    """Row 25: 3 to 5 and 9 were finished, 15 is the charger that died, 14 is still charging."""
    world.steve.load_recording("3.14.1", shift=recording_offset(world.clock.now(), "3.14.1"))
    world.sync()
    assert {number: world.state_of(number)[0] for number in (3, 4, 5, 9, 14, 15)} == {
        3: "stuck", 4: "stuck", 5: "open", 9: "stuck", 14: "open", 15: "stuck",
    }  # fmt: skip
    assert evidence(3) == ("next_start", 112_345)
    assert evidence(4) == ("next_start", 115_000)
    assert evidence(9) == ("next_start", 75_000)
    assert evidence(15) == ("meter_value", 9_000)
    assert (evidence(5), evidence(14)) == (None, None)
    delivered = {session.steve_id: session.energy_wh for session in list_stuck(world.config())}
    assert delivered == {3: 0, 4: 2_655, 9: 1_500, 15: 8_000}

    world.clock.advance(49 * HOUR)
    world.sync()
    assert world.state_of(5) == world.state_of(14) == ("stuck", None)
    assert evidence(5) == ("none", None)
    assert evidence(14) == ("meter_value", 84_500)
    assert world.balance().states["stuck"].to_json() == {"sessions": 6, "energy_wh": 0}
    world.assert_conserved()


@pytest.mark.parametrize("release", ["3.7.1", "3.9.0"])
def test_the_recorded_charger_that_died_is_stuck_on_older_releases_by_its_next_start(world, release):
    world.steve.load_recording(release, shift=recording_offset(world.clock.now(), release))
    world.sync()
    assert world.state_of(15) == ("stuck", None)
    assert evidence(15) == ("next_start", 9_500)
    assert [session.steve_id for session in list_stuck(world.config())] == [15]
    assert world.state_of(14) == ("open", None)
    world.assert_conserved()


@each_kind
def test_a_newer_session_on_the_connector_makes_one_stuck(live, release):
    died = abandoned(live, (2 * HOUR, 4_000), (HOUR, 9_000))
    elsewhere = live.start("TAG-ALICE", "CP-1", 2, 3 * HOUR)
    live.sync()
    assert live.state_of(died) == live.state_of(elsewhere) == ("open", None)
    later = newer(live)
    live.sync()
    assert live.state_of(died) == ("stuck", None)
    assert evidence(died) == (("meter_value", 9_000) if release in WITH_DETAILS else ("next_start", 9_500))
    assert live.state_of(elsewhere) == ("open", None)
    assert live.state_of(later) == ("confirmed", None)
    live.assert_conserved()


@each_kind
def test_without_a_sign_of_life_for_so_long_a_session_is_stuck(live):
    silent = live.start("TAG-ALICE", at=HOUR)
    live.sync()
    live.clock.advance(46 * HOUR)
    live.sync()
    assert live.state_of(silent) == ("open", None)
    live.clock.advance(2 * HOUR)
    live.sync()
    assert live.state_of(silent) == ("stuck", None)
    assert evidence(silent) == ("none", None)
    live.assert_conserved()


def test_how_long_is_a_setting(live):
    silent = live.start("TAG-ALICE", at=3 * HOUR)
    live.sync(stuck_after_hours=4)
    assert live.state_of(silent) == ("open", None)
    live.sync(stuck_after_hours=2)
    assert live.state_of(silent) == ("stuck", None)


@without_details
def test_without_meter_values_an_old_session_gets_its_time_from_when_it_was_first_seen(live):
    old = live.start("TAG-ALICE", at=10 * DAY)
    live.sync()
    assert live.state_of(old) == ("open", None)
    live.clock.advance(49 * HOUR)
    live.sync()
    assert live.state_of(old) == ("stuck", None)


@with_details
def test_a_session_that_sends_meter_values_is_not_stuck_however_long_it_is(live):
    long = live.start("TAG-ALICE", at=HOUR, meter_wh=1_000)
    for day in range(1, 6):
        live.clock.advance(DAY)
        send_values(live, long, (MINUTE, 1_000 + day * 2_000))
        live.sync()
        assert live.state_of(long) == ("open", None)
    live.clock.advance(49 * HOUR)
    live.sync()
    assert live.state_of(long) == ("stuck", None)
    assert evidence(long) == ("meter_value", 11_000)


@with_details
def test_a_stuck_session_whose_charger_comes_back_goes_on(live):
    session = live.start("TAG-ALICE", at=HOUR, meter_wh=1_000)
    live.sync()
    live.clock.advance(50 * HOUR)
    live.sync()
    assert live.state_of(session) == ("stuck", None)
    live.clock.advance(25 * HOUR)
    send_values(live, session, (MINUTE, 3_000))
    live.sync()
    assert live.state_of(session) == ("open", None)
    assert row(session).stuck_since is None
    assert live.balance().states["open"].sessions == 1
    live.assert_conserved()


@each_kind
def test_a_wrong_clock_alone_makes_nobody_stuck(live):
    live.session("TAG-ALICE", connector=2)
    live.sync()
    in_1970 = live.start("TAG-ALICE", at=datetime(1970, 1, 2, tzinfo=UTC))
    live.sync()
    assert live.state_of(in_1970) == ("open", None)
    live.clock.advance(49 * HOUR)
    live.sync()
    assert live.state_of(in_1970) == ("stuck", None)


@pytest.mark.parametrize("release", ["3.7", "3.9"])
def test_a_session_is_read_once_more_before_it_counts_as_stuck(live):
    """Its stop may have come after the open sessions were read, and before its successor was found."""
    first = abandoned(live)
    live.sync()
    source = Source.objects.get()
    source.progress["active"] |= {"took_s": 3_600}  # the active list has to rest, and is not read now
    source.progress["window"] |= {"took_s": 3_600}
    source.save(update_fields=["progress"])
    live.stop(first, at=HOUR, meter_wh=9_500)
    second = newer(live)
    live.sync()
    assert live.state_of(first) == live.state_of(second) == ("confirmed", None)
    assert live.lago_wh() == 8_500 + 6_000
    live.assert_conserved()


@each_kind
def test_an_open_session_that_vanishes_from_steve_is_stuck_and_not_asked_for_again(live):
    gone = live.start("TAG-GONE", at=3 * HOUR, meter_wh=1_000)
    for connector in range(2, 8):
        live.session("TAG-ALICE", connector=connector)
    live.sync()
    live.steve.delete_tag("TAG-GONE")
    live.session("TAG-ALICE", start=HOUR, stop=MINUTE, start_wh=4_000, stop_wh=5_000)
    live.sync()
    assert live.state_of(gone) == ("stuck", None)
    assert evidence(gone) == ("next_start", 4_000)
    live.steve.requests.clear()
    live.clock.advance(2 * HOUR)
    live.sync()
    assert asked_for(live, gone) == 0
    (listed,) = list_stuck(live.config())
    assert not listed.can_close


# -- where the evidence comes from ---------------------------------------------------------------------


@without_details
@pytest.mark.parametrize(
    ("start_wh", "next_wh", "found"),
    [
        (1_000, 9_500, ("next_start", 9_500)),
        (1_000, 1_000, ("next_start", 1_000)),
        (1_000, 0, ("none", None)),  # the register went back
        (0, 0, ("none", None)),  # counts every session anew
        (0, 500, ("next_start", 500)),
    ],
)
def test_the_next_start_is_evidence_where_it_can_be(live, start_wh, next_wh, found):
    died = abandoned(live, start_wh=start_wh)
    newer(live, next_wh)
    live.sync()
    assert evidence(died) == found


@with_details
def test_the_next_start_is_evidence_where_no_meter_value_is(live):
    died = abandoned(live)
    newer(live)
    live.sync()
    assert evidence(died) == ("next_start", 9_500)


def test_a_next_session_whose_clock_was_reset_is_the_next_all_the_same(live):
    """By the clocks the one after it would come next, and its register says too much."""
    died = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    live.session("TAG-ALICE", start=datetime(1970, 1, 2, tzinfo=UTC), stop=datetime(1970, 1, 3, tzinfo=UTC),
                 start_wh=4_000, stop_wh=9_000)  # fmt: skip
    live.session("TAG-ALICE", start=HOUR, stop=MINUTE, start_wh=9_000, stop_wh=9_500)
    live.sync()
    assert evidence(died) == ("next_start", 4_000)


def test_a_session_that_began_earlier_and_was_delivered_later_says_nothing(live):
    died = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    live.session("TAG-ALICE", start=5 * HOUR, stop=4 * HOUR, start_wh=2_000, stop_wh=3_000)
    live.sync()
    assert evidence(died) == ("none", None)


@pytest.mark.parametrize("release", ["3.12"])
def test_meter_values_of_the_next_session_are_not_ours(live):
    died = abandoned(live, (HOUR, 9_000))
    later = live.start("TAG-ALICE", at=40 * MINUTE, meter_wh=9_500)
    send_values(live, later, (30 * MINUTE, 12_000), (20 * MINUTE, 15_000))
    live.sync()
    assert evidence(died) == ("meter_value", 9_000)


@with_details
def test_meter_values_that_come_late_are_found_within_a_day(live):
    died = abandoned(live)
    newer(live)
    live.sync()
    assert evidence(died) == ("next_start", 9_500)
    send_values(live, died, (HOUR, 9_200))
    live.clock.advance(25 * HOUR)
    live.sync()
    assert evidence(died) == ("meter_value", 9_200)


# -- StEvE's time --------------------------------------------------------------------------------------


@each_kind
def test_a_stuck_session_is_asked_for_only_when_the_active_list_does_not_show_it(live):
    died = abandoned(live)
    newer(live)
    for connector in range(2, 8):  # so that it is not among the latest ids
        live.session("TAG-ALICE", connector=connector)
    live.sync()
    assert live.state_of(died) == ("stuck", None)
    live.steve.requests.clear()
    for _ in range(8):
        live.clock.advance(14 * MINUTE)  # and one more passes in each run
        live.sync()
    assert asked_for(live, died) == 0
    assert live.steve_calls("type=ACTIVE")
    live.stop(died, at=timedelta(), meter_wh=7_000)
    live.clock.advance(14 * MINUTE)
    live.sync()
    assert asked_for(live, died) >= 1
    assert live.state_of(died) == ("confirmed", None)


@pytest.mark.parametrize("release", ["3.14.1"])
def test_many_stuck_sessions_are_read_a_portion_per_cycle_and_then_left_alone(live):
    number = DETAILS_PER_CYCLE + 10
    for connector in range(1, number + 1):
        abandoned(live, (2 * HOUR, 5_000), connector=connector)
        newer(live, connector=connector)
    live.sync()
    assert len(details_read(live)) == DETAILS_PER_CYCLE
    live.clock.advance(10 * MINUTE)
    live.sync()
    assert len(details_read(live)) == len(set(details_read(live))) == number
    assert ChargingSession.objects.filter(state="stuck", evidence__stop_wh=5_000).count() == number
    live.steve.requests.clear()
    for _ in range(5):
        live.clock.advance(HOUR)
        live.sync()
    assert details_read(live) == []
    live.assert_conserved()


@with_details
def test_what_waits_for_a_decision_is_read_before_what_is_merely_stuck(live):
    for connector in range(1, DETAILS_PER_CYCLE + 1):
        abandoned(live, connector=connector)
        newer(live, connector=connector)
    closed = live.start("TAG-ALICE", "CP-2", at=3 * HOUR, meter_wh=1_000)
    send_values(live, closed, (HOUR, 9_000), box="CP-2")
    live.steve.manual_stop(closed)
    live.sync()
    assert details_read(live)[0] == closed
    assert live.state_of(closed) == ("confirmed", None)


def test_another_session_under_a_stuck_ones_number_pauses_delivery(live):
    """The daily look at its meter values is the first that asks for it."""
    died = abandoned(live, (HOUR, 5_000))
    newer(live)
    for _ in range(5):  # the last known ones are asked for in every run
        live.session("TAG-ALICE", "CP-2")
    live.sync()
    assert live.state_of(died) == ("stuck", None)
    live.clock.advance(15 * HOUR)
    live.sync()  # the night's reading
    source = Source.objects.get()
    for slow in ("active", "window"):
        source.progress[slow] |= {"took_s": 36_000}
    source.save(update_fields=["progress"])
    live.show_as(died, startValue="77")
    live.clock.advance(10 * HOUR)
    run = live.sync()
    assert (run.status, run.delivery) == ("failed", "paused")
    assert f"known ({died})" in run.errors[0]["error"]
    assert (live.state_of(died), evidence(died)) == (("stuck", None), ("meter_value", 5_000))


@with_details
def test_a_call_that_is_refused_while_evidence_is_read_lets_the_release_be_found_out_again(live):
    live.sync()
    abandoned(live)
    newer(live)
    live.steve.add_fault(Fault("status", path=r"/transactions/[0-9]+$", status=403))
    assert live.sync().status == "failed"
    assert Source.objects.get().capabilities is None
    assert live.sync().status == "completed"


def test_a_death_before_the_evidence_is_written_is_healed_by_the_next_run(live):
    died = abandoned(live, (HOUR, 9_000))
    newer(live)

    def die(name, phase):
        if (name, phase) == ("db commit stuck", "before"):
            raise KeyboardInterrupt

    effects.install_hook(die)
    try:
        with pytest.raises(KeyboardInterrupt):
            live.sync()
    finally:
        effects.install_hook(None)
    assert live.state_of(died) == ("open", None)
    live.clock.advance(10 * MINUTE)
    live.sync()
    assert live.state_of(died) == ("stuck", None)
    assert evidence(died) == ("meter_value", 9_000)
    live.assert_conserved()


def test_reading_meter_values_rests_for_twenty_times_as_long_as_it_took(live):
    live.sync()
    source = Source.objects.get()
    source.progress["evidence"] = {"at": live.clock.now().isoformat(), "took_s": 30}
    source.save(update_fields=["progress"])
    died = abandoned(live)
    newer(live)
    live.sync()
    assert live.state_of(died) == ("open", None)
    live.clock.advance(10 * MINUTE)
    live.sync()
    assert live.state_of(died) == ("stuck", None)


def test_a_session_whose_details_steve_cannot_show_holds_back_nobody(live):
    broken = abandoned(live, (2 * HOUR, 5_000))
    newer(live)
    fine = abandoned(live, (2 * HOUR, 5_000), connector=2)
    newer(live, connector=2)
    live.steve.add_fault(Fault("status", path=rf"/transactions/{broken}$", status=500, times=-1))
    run = live.sync()
    assert (run.status, run.errors) == ("completed", [])
    assert live.state_of(broken) == live.state_of(fine) == ("stuck", None)
    assert (evidence(broken), evidence(fine)) == (None, ("meter_value", 5_000))
    live.sync()
    assert details_read(live).count(broken) == 1
    live.steve.clear_faults()
    live.clock.advance(2 * HOUR)
    live.sync()
    assert evidence(broken) == ("meter_value", 5_000)


# -- the station's own stop ----------------------------------------------------------------------------


@each_kind
def test_the_stations_stop_ends_a_stuck_session_within_an_hour(live):
    """Row 31: the first of two open sessions on a connector is stopped late; both are billed."""
    first = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=10_900)
    second = live.start("TAG-ALICE", at=2 * HOUR, meter_wh=11_500)
    live.sync()
    assert (live.state_of(first)[0], live.state_of(second)[0]) == ("stuck", "open")
    live.stop(first, at=HOUR, meter_wh=11_500)
    live.stop(second, at=HOUR, meter_wh=12_000)
    live.clock.advance(HOUR)
    live.sync()
    assert live.state_of(first) == live.state_of(second) == ("confirmed", None)
    assert row(first).stuck_since is None
    assert live.lago_wh() == 600 + 500
    live.assert_conserved()


# -- closed by hand ------------------------------------------------------------------------------------


@with_details
def test_a_manual_stop_that_agrees_with_the_meter_values_is_billed_at_once(live):
    """Never stuck: it is seen for the first time when an operator has closed it already."""
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    send_values(live, session, (2 * HOUR, 4_000), (HOUR, 9_000))
    live.steve.manual_stop(session)
    live.sync()
    assert evidence(session) == ("meter_value", 9_000)
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh() == 8_000
    live.assert_conserved()


@without_details
def test_without_meter_values_a_manual_stop_is_believed_when_the_next_start_agrees(live):
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    newer(live)
    live.steve.manual_stop(session)
    live.sync()
    assert evidence(session) == ("next_start", 9_500)
    assert live.state_of(session) == ("confirmed", None)
    assert live.billed_wh(session) == 8_500
    live.assert_conserved()


@each_kind
def test_a_session_without_meter_values_that_is_closed_by_hand_is_held_and_never_excluded(live):
    """Row 32: StEvE writes no energy, 3,000 Wh were delivered; later the next start proves it."""
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    live.sync()
    live.steve.manual_stop(session)
    live.sync()
    assert row(session).energy_wh == 0
    assert evidence(session) == ("none", None)
    assert live.state_of(session) == ("held", "manual_stop_without_evidence")
    assert "nothing shows what was delivered" in live.words_about(session)

    later = live.session("TAG-ALICE", start=30 * MINUTE, stop=MINUTE, start_wh=4_000, stop_wh=5_000)
    live.sync()
    assert evidence(session) == ("next_start", 4_000)
    assert live.state_of(session) == ("held", "manual_stop_without_evidence")
    assert "4.000 kWh" in live.words_about(session)
    assert live.state_of(later) == ("confirmed", None)
    live.assert_conserved()


def test_a_manual_stop_that_contradicts_the_evidence_is_held(live):
    """StEvE 3.12 takes the reading of a single phase for the register of the session."""
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    send_values(live, session, (2 * HOUR, 4_000), (HOUR, 9_000))
    live.show_as(session, stopValue="7000", stopTimestamp="2026-03-17T11:00:00.000Z", stopEventActor="manual")
    live.sync()
    assert live.state_of(session) == ("held", "manual_stop_without_evidence")
    assert live.words_about(session) == "closed by hand at 7.000 kWh, but the evidence says 9.000 kWh"
    assert live.posts() == []


@pytest.mark.parametrize("release", ["3.12"])
def test_a_phase_that_steve_takes_for_the_total_is_not_believed(live):
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    send_values(live, session, (2 * HOUR, 4_000), (HOUR, 9_000))
    live.steve.meter_values("CP-1", 1, [Sample(live.at(HOUR - MINUTE), "3100", phase="L1")], session)
    live.steve.manual_stop(session)
    live.sync()
    assert row(session).stop_wh == 3_100
    assert evidence(session) == ("meter_value", 9_000)
    assert live.state_of(session) == ("held", "manual_stop_without_evidence")


@pytest.mark.parametrize("release", ["3.7.1"])
def test_a_session_without_start_that_is_closed_by_hand_is_held_or_stays_stuck(live):
    """Row 27: StEvE writes the last meter value and its time, and without one it cannot write a stop at all."""
    beyond = datetime(2040, 1, 1, tzinfo=UTC)
    measured = live.start("TAG-ALICE", at=beyond, meter_wh=1_000)
    send_values(live, measured, (HOUR, 9_000))
    silent = live.start("TAG-ALICE", "CP-2", at=beyond, meter_wh=1_000)
    others = live.session("TAG-ALICE", "CP-3", energy_wh=500)
    live.sync()
    live.steve.manual_stop(measured)
    live.steve.manual_stop(silent)
    live.clock.advance(4 * DAY)
    assert live.sync().status == "completed"
    assert (live.state_of(measured), row(measured).rest_wh) == (("held", "clock_skew"), 8_000)
    assert live.state_of(silent) == ("stuck", None)
    assert live.state_of(others) == ("confirmed", None)
    live.clock.advance(MINUTE)
    assert live.stop(silent, "CP-2", at=timedelta(), meter_wh=3_000) is None
    live.clock.advance(HOUR)
    live.sync()
    assert (live.state_of(silent), row(silent).rest_wh) == (("held", "clock_skew"), 2_000)
    assert live.lago_wh() == 500
    live.assert_conserved()


@with_details
def test_values_that_were_read_the_moment_the_stop_turned_up_are_read_once_more(live):
    """StEvE stores a stop before the meter values that belong to it."""
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    live.steve.manual_stop(session)
    live.sync()
    assert evidence(session) == ("none", None)
    send_values(live, session, (2 * HOUR, 4_000))
    live.sync()
    assert evidence(session) == ("meter_value", 4_000)
    assert "4.000 kWh" in live.words_about(session)
    live.steve.requests.clear()
    live.sync()
    assert details_read(live) == []


@with_details
def test_a_stations_stop_is_billed_before_and_after_its_meter_values_can_be_seen(live):
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    end = Sample(live.at(HOUR), "9000", context="Transaction.End")
    stopped_at = live.at(HOUR)
    live.steve.stop_transaction(session, "CP-1", stopped_at, 9_000, transaction_data=[end], data_stored=False)
    live.sync()
    assert live.billed_wh(session) == 8_000
    live.steve.store_transaction_data(session)
    live.clock.advance(HOUR)
    live.sync()
    assert (live.state_of(session), live.lago_wh()) == (("confirmed", None), 8_000)
    assert UsageEvent.objects.count() == 1


@with_details
def test_the_stations_own_stop_corrects_a_manual_one(live):
    """Rows 14 and 30."""
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    send_values(live, session, (2 * HOUR, 4_000), (HOUR, 9_000))
    live.steve.manual_stop(session)
    live.sync()
    assert live.billed_wh(session) == 8_000
    assert live.stop(session, at=30 * MINUTE, meter_wh=9_700) is None
    live.sync()
    events = UsageEvent.objects.order_by("n").values_list("kind", "energy_wh", "state")
    assert list(events) == [("original", 8_000, "confirmed"), ("correction", 700, "confirmed")]
    assert live.lago_wh() == 8_700
    assert live.balance().read.energy_wh == 8_700
    live.assert_conserved()


@with_details
def test_a_manual_stop_without_energy_is_replaced_by_the_stations_own(live):
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    live.steve.manual_stop(session)
    live.sync()
    assert live.state_of(session) == ("held", "manual_stop_without_evidence")
    live.stop(session, at=30 * MINUTE, meter_wh=4_000)
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh() == 3_000
    live.assert_conserved()


@each_kind
def test_a_stuck_session_that_an_operator_closes_is_judged_within_the_hour(live):
    died = abandoned(live, (2 * HOUR, 4_000), (HOUR, 9_500))
    newer(live)
    live.sync()
    assert live.state_of(died) == ("stuck", None)
    live.steve.manual_stop(died)
    live.clock.advance(HOUR)
    live.sync()
    # Up to 3.11 StEvE knows the meter values, too, though it does not show them: here they agree.
    assert row(died).stop_wh == 9_500
    assert live.state_of(died) == ("confirmed", None)
    assert live.billed_wh(died) == 8_500
    live.assert_conserved()


# -- a person's reading --------------------------------------------------------------------------------


def test_a_stuck_session_that_a_person_has_read_the_meter_of_is_billed_and_stays_out_of_the_watch(live):
    died = abandoned(live)
    newer(live)
    live.sync()
    review.enter_reading(
        row(died).pk, stop_wh=9_300, stopped_at=live.clock.now() - HOUR, note="read on site", by="test"
    )
    live.sync()
    live.sync()
    assert live.state_of(died) == ("confirmed", None)
    assert live.billed_wh(died) == 8_300
    assert row(died).stuck_since is not None
    assert list_stuck(live.config()) == []
    live.assert_conserved()


# -- closing in StEvE ----------------------------------------------------------------------------------


@pytest.fixture
def steve(world):
    """A client of the world's StEvE, as a page or a command has one."""
    with open_clients(world.config()) as (client, _):
        yield client


def close(world, steve, session, expected_stop_wh):
    return close_in_steve(world.config(), steve, session, expected_stop_wh=expected_stop_wh, by="test")


def patches(world):
    return [request["path"] for request in world.steve.requests if request["method"] == "PATCH"]


def acts():
    entries = AuditEntry.objects.filter(action__startswith="session.clos").order_by("id")
    return list(entries.values_list("action", flat=True))


@pytest.mark.parametrize("release", ["3.12", "3.13", "3.14.1"])
@pytest.mark.parametrize(
    ("values", "next_wh", "stop_wh", "source", "agrees"),
    [
        ([(2 * HOUR, 4_000), (HOUR, 9_000)], 9_500, 9_000, "meter_value", True),
        ([], 9_500, 9_500, "next_start", True),
        ([], 1_000, 1_000, "next_start", False),
        ([(2 * HOUR, 4_000), (HOUR, 9_000)], 0, 9_000, "meter_value", True),
    ],
)
def test_what_was_foretold_is_what_steve_writes(live, steve, values, next_wh, stop_wh, source, agrees):
    died = abandoned(live, *values)
    newer(live, next_wh)
    live.sync()
    session = row(died)
    preview = preview_close(live.config(), steve, session)
    assert (preview.stop_wh, preview.source, preview.agrees) == (stop_wh, source, agrees)
    assert row(died).state == "stuck"
    assert patches(live) == []

    closed = close(live, steve, session, preview.stop_wh)
    assert (closed.stop_wh, closed.stopped_at, closed.energy_wh) == (
        preview.stop_wh, preview.stopped_at, preview.energy_wh,
    )  # fmt: skip
    assert (row(died).stop_wh, row(died).stopped_at, row(died).stop_actor) == (
        preview.stop_wh, preview.stopped_at, "manual",
    )  # fmt: skip
    assert acts() == ["session.close", "session.closed"]
    live.sync()
    expected = ("confirmed", None) if agrees else ("held", "manual_stop_without_evidence")
    assert live.state_of(died) == expected
    live.assert_conserved()


def test_a_session_that_is_being_charged_is_not_closed(live, steve):
    running = live.start("TAG-ALICE", at=MINUTE, meter_wh=1_000)
    live.sync()
    with pytest.raises(ClosingError, match="is not stuck"):
        preview_close(live.config(), steve, row(running))
    assert patches(live) == []


@pytest.mark.parametrize("release", ["3.13", "3.14.1"])
def test_where_two_releases_would_write_different_stops_both_are_said(live, steve, release):
    died = abandoned(live, (2 * HOUR, 4_000), (HOUR, 9_000), (50 * MINUTE, 1_200))
    newer(live)
    live.sync()
    preview = preview_close(live.config(), steve, row(died))
    assert (preview.stop_wh, preview.or_stop_wh) == (9_000, 1_200)
    assert "older than 3.14, it would write 1.200 kWh" in preview.says
    known = preview_close(live.config(steve_release=release), steve, row(died))
    assert (known.stop_wh, known.or_stop_wh) == ((1_200, None) if release == "3.13" else (9_000, None))
    live.steve.manual_stop(died)
    live.clock.advance(HOUR)
    live.sync()
    assert row(died).stop_wh == known.stop_wh


@without_details
def test_older_releases_cannot_close_and_say_so(live, steve):
    died = abandoned(live)
    newer(live)
    live.sync()
    with pytest.raises(ClosingError, match="newer can"):
        close(live, steve, row(died), 9_500)
    (listed,) = list_stuck(live.config())
    assert (listed.can_close, listed.energy_wh) == (False, 8_500)
    assert "StEvE's own pages" in listed.says


def test_nothing_is_closed_without_evidence(live, steve):
    silent = live.start("TAG-ALICE", at=3 * DAY)
    live.sync()
    assert evidence(silent) == ("none", None)
    (listed,) = list_stuck(live.config())
    assert not listed.can_close
    with pytest.raises(ClosingError, match="Enter a reading, or exclude"):
        close(live, steve, row(silent), row(silent).start_wh)
    assert patches(live) == acts() == []


def test_it_is_refused_when_closing_would_give_something_else_by_now(live, steve):
    died = abandoned(live, (2 * HOUR, 4_000))
    newer(live)
    live.sync()
    session = row(died)
    send_values(live, died, (HOUR, 9_000))
    with pytest.raises(ClosingError, match=r"would now give 9\.000 kWh and not 4\.000 kWh"):
        close(live, steve, session, 4_000)
    assert patches(live) == acts() == []


def test_it_is_refused_when_the_station_was_quicker_and_that_stop_is_recorded(live, steve):
    died = abandoned(live, (2 * HOUR, 4_000))
    newer(live)
    live.sync()
    session = row(died)
    live.stop(died, at=HOUR, meter_wh=9_000)
    with pytest.raises(ClosingError, match=r"its charge box has sent the stop, at 9\.000 kWh"):
        close(live, steve, session, 4_000)
    assert patches(live) == []
    assert row(died).stop_wh == 9_000
    with pytest.raises(ClosingError, match="has changed meanwhile"):
        close(live, steve, session, 4_000)
    with pytest.raises(ClosingError, match="has stopped"):
        close(live, steve, row(died), 4_000)
    live.sync()
    assert live.billed_wh(died) == 8_000
    live.assert_conserved()


def test_a_session_that_steve_no_longer_shows_cannot_be_closed(live, steve):
    died = live.start("TAG-GONE", at=3 * HOUR, meter_wh=1_000)
    newer(live)
    live.sync()
    session = row(died)
    live.steve.delete_tag("TAG-GONE")
    with pytest.raises(ClosingError, match="no longer shows"):
        close(live, steve, session, 9_500)
    live.clock.advance(HOUR)
    live.sync()
    with pytest.raises(ClosingError, match="no longer shows"):
        close(live, steve, row(died), 9_500)


def test_nothing_is_closed_when_another_session_stands_under_the_number(live, steve):
    died = abandoned(live)
    newer(live)
    live.sync()
    live.show_as(died, startValue="7")
    with pytest.raises(ClosingError, match="another session under number"):
        close(live, steve, row(died), 9_500)
    assert patches(live) == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("drop_after", method="PATCH"),
        Fault("status", method="PATCH", status=502, after=True),
        Fault("html", method="PATCH", status=504, after=True),
    ],
    ids=["connection-lost", "bad-gateway", "gateway-timeout"],
)
def test_where_the_answer_is_lost_what_steve_shows_decides(live, steve, fault):
    died = abandoned(live, (HOUR, 9_000))
    newer(live)
    live.sync()
    live.steve.add_fault(
        Fault(**{name: getattr(fault, name) for name in ("kind", "method", "status", "after")})
    )
    closed = close(live, steve, row(died), 9_000)
    assert closed.energy_wh == 8_000
    assert row(died).stop_actor == "manual"
    live.sync()
    assert live.billed_wh(died) == 8_000


def test_an_order_that_did_not_reach_steve_is_said_to_have_failed_and_can_be_repeated(live, steve):
    died = abandoned(live, (HOUR, 9_000))
    newer(live)
    live.sync()
    live.steve.add_fault(Fault("drop_before", method="PATCH"))
    with pytest.raises(ClosingError, match=f"StEvE did not close session {died}: "):
        close(live, steve, row(died), 9_000)
    assert row(died).state == "stuck"
    assert close(live, steve, row(died), 9_000).energy_wh == 8_000
    assert acts() == ["session.close", "session.close", "session.closed"]


def test_where_steve_goes_away_in_the_middle_nobody_knows_and_that_is_said(live, steve):
    died = abandoned(live, (HOUR, 9_000))
    newer(live)
    live.sync()
    live.steve.add_fault(Fault("drop_after", method="PATCH"))
    live.steve.add_fault(Fault("drop_before", method="GET", path=f"transactionPk={died}$", times=-1))
    session = row(died)
    with pytest.raises(ClosingError, match="Nobody knows whether"):
        close(live, steve, session, 9_000)
    live.steve.clear_faults()
    assert row(died).state == "stuck"
    assert close(live, steve, session, 9_000).energy_wh == 8_000
    assert len(patches(live)) == 1
    live.sync()
    assert live.billed_wh(died) == 8_000
    live.assert_conserved()


def test_a_death_right_after_the_order_leaves_its_trace_and_is_healed_by_the_next_run(live, steve):
    died = abandoned(live, (HOUR, 9_000))
    newer(live)
    live.sync()

    def die(name, phase):
        if phase == "after" and "PATCH" in name:
            raise KeyboardInterrupt

    effects.install_hook(die)
    try:
        with pytest.raises(KeyboardInterrupt):
            close(live, steve, row(died), 9_000)
    finally:
        effects.install_hook(None)
    assert acts() == ["session.close"]
    live.clock.advance(HOUR)
    live.sync()
    assert live.billed_wh(died) == 8_000
    live.assert_conserved()


def test_steve_that_cannot_be_asked_changes_nothing(live, steve):
    died = abandoned(live, (HOUR, 9_000))
    newer(live)
    live.sync()
    live.steve.add_fault(Fault("drop_before", method="GET", times=-1))
    with pytest.raises(SteveError):
        close(live, steve, row(died), 9_000)
    assert patches(live) == acts() == []


# -- the command line ----------------------------------------------------------------------------------


@pytest.fixture
def here(world, monkeypatch, capsys):
    """Run a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        for name, value in world.environment().items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()  # what the test itself has logged
        code = main(arguments)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_the_list_says_what_each_stuck_session_is_worth_and_what_can_be_done(live, here):
    assert here("stuck") == (0, "No session is stuck.\n", "")
    assert here("stuck", "--json")[1] == "[]\n"
    died = abandoned(live, (HOUR, 9_000))
    newer(live)
    live.start("AB", "CP-2", at=3 * DAY, meter_wh=5)
    live.sync()
    code, printed, errors = here("stuck", "--json")
    assert (code, errors) == (0, "")
    first, second = json.loads(printed)
    assert first == {
        "id": died,
        "session_id": row(died).pk,
        "charge_box_id": "CP-1",
        "connector_id": 1,
        "id_tag_last4": "LICE",
        "started_at": "2026-03-17T09:00:00+00:00",
        "start_wh": 1_000,
        "first_seen_at": "2026-03-17T12:00:00+00:00",
        "stuck_since": "2026-03-17T12:00:00+00:00",
        "vanished_at": None,
        "superseded_at": None,
        "mapping": "active",
        "customer_id": "alice",
        "subscription_id": None,
        "evidence": {
            "source": "meter_value",
            "stop_wh": 9_000,
            "at": "2026-03-17T11:00:00+00:00",
            "read_at": "2026-03-17T12:00:00+00:00",
            "heard_at": "2026-03-17T11:00:00+00:00",
        },
        "energy_wh": 8_000,
        "can_close": True,
        "can": ["close", "reading", "exclude"],
        "says": f"Close it in StEvE: ocpp-billing stuck close {died}. "
        "Or: Enter a reading, or exclude the session with a note.",
    }
    assert (second["id_tag_last4"], second["energy_wh"], second["can_close"]) == ("", None, False)
    assert second["evidence"]["source"] == "none"
    assert (second["mapping"], second["customer_id"]) == ("none", None)
    assert second["can"] == ["reading", "exclude"]
    text = here("stuck")[1]
    assert f"{died}  CP-1 connector 1, tag …LICE, customer alice, stuck since" in text
    assert "8.000 kWh by the last meter value (9.000 kWh)" in text
    assert "energy unknown" in text
    assert f"In the portal: http://localhost:8000/sessions/{row(died).pk}\n" in text
    assert "TAG-ALICE" not in printed + text


def test_a_session_is_closed_from_the_command_line_after_the_preview(live, here):
    died = abandoned(live, (HOUR, 9_000))
    newer(live)
    live.sync()
    code, printed, errors = here("stuck", "close", str(died))
    assert (code, errors) == (1, "There is no terminal to ask on: repeat with --yes.\n")
    assert printed == (
        f"StEvE would end session {died} at 9.000 kWh, 2026-03-17 11:00:00 UTC (its last meter value): "
        "8.000 kWh. The evidence agrees: 9.000 kWh (its last meter value).\n"
    )
    assert patches(live) == []
    code, printed, errors = here("stuck", "close", str(died), "--yes")
    assert (code, errors) == (0, "")
    assert f"Session {died} is closed at 9.000 kWh: 8.000 kWh." in printed
    assert AuditEntry.objects.get(action="session.closed").actor.startswith("command line (")
    live.sync()
    assert live.billed_wh(died) == 8_000
    code, _, errors = here("stuck", "close", str(died), "--yes")
    assert (code, errors) == (1, f"Session {died} has stopped: there is nothing to close.\n")
    assert here("stuck", "close", "999", "--yes")[::2] == (
        1,
        "There is no session 999. See: ocpp-billing stuck\n",
    )
