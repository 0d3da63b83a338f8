"""What must never happen again, by the numbers of docs/reference/scenarios.md: reading StEvE."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from urllib.parse import parse_qs, urlsplit

import pytest

from ocpp_billing.billing import control, review
from ocpp_billing.charging.models import ChargingSession, IdTag, MalformedRow, Source
from ocpp_billing.simulators.server import Fault
from ocpp_billing.simulators.steve import Sample
from ocpp_billing.simulators.steve_recording import recording_offset
from ocpp_billing.steve import discovery
from ocpp_billing.steve.capabilities import NOWHEN
from ocpp_billing.sync.models import SyncLog

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
# 3.12 can what 3.14 can.
RELEASES = ["3.7.1", "3.9.0", "3.10", "3.11", pytest.param("3.12", marks=pytest.mark.long), "3.14.1"]
every_release = pytest.mark.parametrize("release", RELEASES)
every_store = pytest.mark.parametrize("store", ["postgres", "postgres-1.32", "postgres-1.30", "clickhouse"])


def errors_of(run):
    return {error["step"]: error["error"] for error in run.errors}


# -- 7: what a window of time would never see ----------------------------------------------------------


@every_release
def test_row_07_a_charger_that_was_offline_delivers_nine_days_late(live):
    live.session("TAG-BOB", "CP-2", energy_wh=1_000)
    live.sync()
    live.clock.advance(DAY)
    late = [
        live.session("TAG-ALICE", "CP-1", 1, 9 * DAY, 9 * DAY - HOUR, energy_wh=7_000),
        live.session("TAG-ALICE", "CP-1", 1, 8 * DAY, 8 * DAY - HOUR, energy_wh=9_000),
    ]
    fresh = live.session("TAG-BOB", "CP-2", energy_wh=2_000)
    live.sync()
    assert [live.state_of(number) for number in [*late, fresh]] == [("confirmed", None)] * 3
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (16_000, 3_000)
    live.assert_conserved()


@every_release
def test_row_07_the_worker_was_down_for_three_days(live):
    running = live.start("TAG-ALICE", "CP-1", at=2 * HOUR)
    live.sync()
    began = live.clock.now()
    live.clock.advance(3 * DAY)
    live.stop(running, "CP-1", at=began + HOUR, meter_wh=31_000)
    missed = [
        live.session("TAG-BOB", "CP-2", 1, began + hours * HOUR, began + (hours + 1) * HOUR, energy_wh=1_000)
        for hours in (1, 30, 70)
    ]
    live.sync()
    assert live.state_of(running) == ("confirmed", None)
    assert [live.state_of(number) for number in missed] == [("confirmed", None)] * 3
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (30_000, 3_000)
    live.assert_conserved()


@every_release
def test_row_07_a_session_that_is_longer_than_the_window_that_is_read(live):
    live.settings["MAX_SESSION_HOURS"] = "240"
    live.settings["STUCK_AFTER_HOURS"] = "200"
    session = live.start("TAG-ALICE", at=timedelta())
    for _ in range(5):
        live.sync()
        live.clock.advance(DAY)
        live.session("TAG-BOB", "CP-2", energy_wh=1_000)  # others come and go meanwhile
    live.stop(session, at=timedelta(minutes=1), meter_wh=91_000)
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (90_000, 5_000)
    live.assert_conserved()


# -- 10, 11: values that cannot be right -----------------------------------------------------------------

BAD_VALUES = {
    "not a number": ({"stopValue": "NaN"}, "malformed"),
    "empty": ({"stopValue": ""}, "malformed"),
    "decimal": ({"stopValue": "12000.9"}, "malformed"),
    "no register": ({"stopValue": None}, "malformed"),
    "beyond 32 bits": ({"stopValue": "99999999999"}, "malformed"),
    "a number instead of a text": ({"stopValue": 12000}, "malformed"),
    "no time at all": ({"startTimestamp": "yesterday"}, "malformed"),
    "negative register": ({"stopValue": "-5"}, "negative_energy"),
    "fallen below the start": ({"stopValue": "999"}, "negative_energy"),
    "huge": ({"stopValue": "2147483647"}, "implausible"),
    "stopped before it started": ({"stopTimestamp": "2026-03-17T08:59:59.000Z"}, "clock_skew"),
    "no energy": ({"stopValue": "1000"}, "zero_energy"),
}


@pytest.mark.parametrize("release", ["3.7.1", "3.9.0", "3.14.1"])
def test_row_10_values_that_cannot_be_right_are_set_aside_held_or_excluded_and_the_others_billed(live):
    before = live.session("TAG-BOB", "CP-2", energy_wh=1_000)
    bad = {}
    for number, (name, (fields, outcome)) in enumerate(BAD_VALUES.items()):
        steve_id = live.session("TAG-ALICE", f"CP-BAD-{number}", start_wh=1_000, stop_wh=12_000)
        live.show_as(steve_id, **fields)
        bad[steve_id] = (name, outcome)
    after = live.session("TAG-BOB", "CP-2", energy_wh=2_000)
    run = live.sync()
    set_aside = set(MalformedRow.objects.values_list("steve_id", flat=True))
    for steve_id, (name, outcome) in bad.items():
        if outcome == "malformed":
            assert steve_id in set_aside, name
            assert not ChargingSession.objects.filter(steve_id=steve_id).exists(), name
        else:
            state = "excluded" if outcome == "zero_energy" else "held"
            assert live.state_of(steve_id) == (state, outcome), name
    assert len(set_aside) == 7
    assert (run.status, run.counts["malformed"]) == ("partial", 7)
    assert live.state_of(before) == live.state_of(after) == ("confirmed", None)
    assert live.lago_wh_by_session() == {before: 1_000, after: 2_000}
    live.assert_conserved()


@pytest.mark.parametrize("release", ["3.7.1", "3.14.1"])
def test_row_11_one_malformed_row_among_thousands_is_set_aside_and_the_run_goes_on(live):
    live.customer("fleet")
    for number in range(1, 6):
        live.map(f"GEN-{number:04d}", "fleet")
    made = live.steve.generate(2_000, days=15, tag_count=5, open_count=1)
    bad = made.first_id + 1_000
    truth = live.steve.truth()
    live.show_as(bad, startValue="NaN")
    run = live.sync()
    assert (run.status, run.counts["malformed"], run.counts["discovered"]) == ("partial", 1, 1_999)
    assert live.sync().status == "completed"  # it is reported once, not in every run
    assert live.lago_wh("sub-fleet") == made.delivered_wh - truth[bad]
    live.assert_conserved()


@pytest.mark.parametrize("release", ["3.7.1", "3.9.0", "3.14.1"])
def test_row_11_a_malformed_row_above_all_others_is_asked_for_once_per_cycle_and_hides_none_after_it(live):
    live.session("TAG-ALICE", "CP-1", energy_wh=1_000)
    live.sync()
    bad = live.session("TAG-ALICE", "CP-2", energy_wh=2_000)
    live.show_as(bad, stopValue="12000.9")
    live.clock.advance(HOUR)
    calls = len(live.steve_calls())
    assert live.sync().status == "partial"
    assert len(live.steve_calls()) - calls <= 6
    after = live.session("TAG-BOB", "CP-3", energy_wh=4_000)
    live.clock.advance(HOUR)
    live.sync()
    assert live.state_of(after) == ("confirmed", None)
    live.assert_conserved()


# -- 13: a session that runs on --------------------------------------------------------------------------


@every_release
def test_row_13_a_running_session_over_several_runs_with_a_crash_between_them(live):
    session = live.start("TAG-ALICE", at=timedelta(minutes=5), meter_wh=5_000)
    live.sync()
    for kwh in (1, 2, 3):
        live.clock.advance(HOUR)
        sample = Sample(live.clock.now(), str(5_000 + kwh * 1_000))
        live.steve.meter_values("CP-1", 1, [sample], session)
        live.sync()
        assert live.state_of(session) == ("open", None)
    live.crash_at("db commit record", "before")
    assert live.posts() == []
    live.stop(session, at=timedelta(), meter_wh=9_250)
    live.crash_at("db commit record", "after")
    live.sync()
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert (live.lago_wh_by_session(), len(live.posts())) == ({session: 4_250}, 1)
    live.assert_conserved()


# -- 15: each release's own ways -------------------------------------------------------------------------


@every_release
def test_row_15_the_old_history_is_never_billed_and_no_new_session_lost_on_any_release(world):
    world.payer("TAG-ALICE", "alice")
    live_from = world.clock.now() - DAY
    old = [
        world.session("TAG-ALICE", "CP-1", 1, days * DAY, days * DAY - HOUR, energy_wh=5_000)
        for days in (300, 200, 100, 15, 3)
    ]
    across = world.start("TAG-ALICE", "CP-2", at=30 * HOUR)
    world.go_live(live_from)
    world.sync()
    world.stop(across, "CP-2", at=timedelta(minutes=1), meter_wh=21_000)
    new = world.session("TAG-ALICE", "CP-1", energy_wh=3_000)
    world.sync()
    world.clock.advance(DAY)  # and a night
    world.sync()
    assert [world.state_of(number) for number in old] == [("excluded", "before_go_live")] * 5
    assert world.lago_wh_by_session() == {across: 20_000, new: 3_000}
    world.assert_conserved()


@pytest.mark.parametrize("release", ["3.8", "3.9.0"])
def test_row_15_where_windows_do_not_count_for_all_types_none_is_asked_for_so(live):
    live.session("TAG-ALICE")
    live.sync()
    live.clock.advance(DAY)
    live.steve.requests.clear()
    live.session("TAG-ALICE")
    live.sync()
    windows = live.steve_calls("periodType=FROM_TO")
    assert windows
    assert all("type=STOPPED" in path or "transactionPk=" in path for path in windows)


@pytest.mark.parametrize("release", ["3.12", "3.14.1"])
def test_row_15_a_stop_that_steve_refuses_leaves_a_session_that_is_shown_as_stuck_with_its_energy(live):
    session = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    live.steve.meter_values("CP-1", 1, [Sample(live.at(2 * HOUR), "6000")], session)
    assert live.stop(session, at=4 * HOUR, meter_wh=6_000) == "stop before start"
    following = live.session("TAG-BOB", "CP-1", start=HOUR, stop=HOUR / 2, start_wh=6_000, stop_wh=8_000)
    live.sync()
    assert live.state_of(session) == ("stuck", None)
    found = ChargingSession.objects.get(steve_id=session).evidence
    assert (found["source"], found["stop_wh"]) == ("meter_value", 6_000)
    assert live.lago_wh_by_session() == {following: 2_000}
    live.assert_conserved()


# -- 18: nobody's tag is touched -------------------------------------------------------------------------


@every_release
def test_row_18_with_no_mapping_at_all_everything_is_held_and_no_tag_is_touched(world):
    world.customer("alice")
    world.go_live()
    world.steve.add_tag("TAG-ALICE")
    session = world.session("TAG-ALICE")
    world.sync()
    world.sync()
    assert world.state_of(session) == ("held", "unmapped_tag")
    assert {request["method"] for request in world.steve.requests} == {"GET"}
    assert world.steve.store.find_tag("TAG-ALICE").max_active == -1
    assert world.posts() == []
    world.assert_conserved()


def test_row_18_with_a_wrong_database_nothing_is_asked_told_or_touched(live):
    live.session("TAG-ALICE")
    ended = subprocess.run(
        [sys.executable, "-m", "ocpp_billing.cli", "sync"],
        env={
            **live.environment(),
            "AUTH_SECRET": "x" * 40,
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/nothing",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "DATABASE_URL" in ended.stderr
    assert live.steve.requests == []
    assert live.lago.requests == []


# -- 24, 37: another StEvE under an old name, and one that came back from a backup -----------------------


@every_release
def test_row_24_a_steve_that_was_set_up_anew_is_not_taken_for_the_old_one(live):
    old = live.session("TAG-ALICE", energy_wh=4_000)
    live.session("TAG-ALICE", energy_wh=5_000)
    live.sync()
    live.steve.reset()
    assert live.session("TAG-BOB", "CP-2", energy_wh=1_000) == old  # the same number, another session
    run = live.sync()
    assert (run.status, run.delivery) == ("failed", "paused")
    assert "answers as another StEvE" in errors_of(run)["discover"]
    assert "STEVE_SOURCE" in control.read_status(live.config()).pause_reason
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (9_000, 0)
    assert ChargingSession.objects.count() == 2


@every_release
def test_row_24_under_a_name_of_its_own_the_new_steve_is_billed_beside_the_old_one(live):
    old = live.session("TAG-ALICE", energy_wh=4_000)
    live.sync()
    live.steve.reset()
    new = live.session("TAG-BOB", "CP-2", energy_wh=1_000)
    assert new == old
    live.settings["STEVE_SOURCE"] = "second"
    live.map("TAG-BOB", "bob")
    live.go_live()
    run = live.sync()
    assert (run.status, run.errors) == ("completed", [])
    assert live.state_of(new) == ("confirmed", None)
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (4_000, 1_000)
    assert len(live.lago_events()) == 2


@every_release
def test_row_37_a_steve_that_came_back_from_a_backup_doubles_nothing_and_bills_nobody_else(live):
    before = [live.session("TAG-ALICE", energy_wh=1_000) for _ in range(3)]
    live.sync()
    live.steve.snapshot()
    lost = [live.session("TAG-ALICE", energy_wh=2_000) for _ in range(2)]
    running = live.start("TAG-ALICE", "CP-3", at=timedelta(minutes=10))
    live.sync()
    assert live.lago_wh() == 7_000
    live.clock.advance(HOUR)
    live.steve.restore()
    again = [live.session("TAG-BOB", "CP-2", energy_wh=500) for _ in range(4)]
    assert again[:3] == [*lost, running]  # the same numbers, other sessions
    run = live.sync()
    assert run.delivery == "paused"
    assert "restored from a backup" in control.read_status(live.config()).pause_reason
    assert Source.objects.get().progress["restored"]["after"] == before[-1]
    assert live.lago_wh() == 7_000
    assert [live.state_of(number) for number in again] == [("queued", None)] * 4
    live.resume()
    live.sync()
    live.sync()
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (7_000, 2_000)
    kept = ChargingSession.objects.filter(steve_id__in=lost, superseded_at__isnull=False)
    assert list(kept.values_list("state", flat=True)) == ["confirmed"] * 2
    assert ChargingSession.objects.get(steve_id=running, superseded_at__isnull=False).state == "stuck"
    live.assert_conserved()


@every_release
def test_row_37_a_restored_steve_that_fails_right_afterwards_has_paused_delivery_all_the_same(live):
    for _ in range(3):
        live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    live.steve.snapshot()
    live.session("TAG-ALICE", energy_wh=2_000)
    live.sync()
    live.clock.advance(HOUR)
    live.steve.restore()
    live.session("TAG-BOB", "CP-2", energy_wh=500)
    new = live.session("TAG-BOB", "CP-2", energy_wh=500)
    live.steve.add_fault(Fault("status", path="type=ACTIVE", times=-1))
    assert "discover" in errors_of(live.sync())
    live.steve.clear_faults()
    assert "restored from a backup" in control.read_status(live.config()).pause_reason
    live.sync()
    assert live.lago_wh("sub-bob") == 0
    live.resume()
    live.sync()
    assert live.state_of(new) == ("confirmed", None)
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (5_000, 1_000)
    live.assert_conserved()


@every_release
def test_row_37_a_steve_that_came_back_with_fewer_sessions_is_recognised_when_it_gives_ids_out_anew(live):
    before = live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    live.steve.snapshot()
    lost = live.session("TAG-ALICE", energy_wh=2_000)
    live.sync()
    live.steve.restore()
    run = live.sync()  # it might just as well have been deleted with its tag
    assert (run.status, run.delivery) == ("completed", "live")
    assert live.state_of(lost) == ("confirmed", None)
    assert ChargingSession.objects.get(steve_id=lost).vanished_at is not None
    new = live.session("TAG-BOB", "CP-2", energy_wh=500)
    assert new == lost
    run = live.sync()
    assert run.delivery == "paused"
    assert live.lago_wh() == 3_000
    live.resume()
    live.sync()
    live.sync()
    assert live.state_of(before) == live.state_of(new) == ("confirmed", None)
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (3_000, 500)
    live.assert_conserved()


@every_release
def test_row_37_a_session_that_the_backup_shows_as_running_again_stays_billed_once(live):
    session = live.start("TAG-ALICE", at=3 * HOUR)
    live.sync()
    live.steve.snapshot()
    live.stop(session, at=HOUR, meter_wh=5_000)
    live.sync()
    assert live.lago_wh() == 4_000
    live.steve.restore()
    for _ in range(2):
        live.sync()
        assert live.lago_wh_by_session() == {session: 4_000}
        live.assert_conserved()
    live.clock.advance(HOUR)
    live.steve.manual_stop(session)  # the operator tidies up; StEvE has forgotten what was delivered
    live.sync()
    live.sync()
    assert live.lago_wh_by_session() == {session: 4_000}
    live.assert_conserved()


@pytest.mark.parametrize("release", ["3.7.1", "3.14.1"])
def test_row_37_a_number_that_now_means_another_tag_bills_nobody_else(live):
    live.session("TAG-ALICE", energy_wh=50)
    live.sync()
    live.steve.snapshot()
    live.steve.add_tag("TAG-BOB")
    first = live.session("TAG-BOB", "CP-2", energy_wh=1_000)
    live.clock.advance(2 * HOUR)
    live.sync()
    number = IdTag.objects.get(text="TAG-BOB").steve_pk
    live.steve.restore()
    live.payer("TAG-CAROL", "carol")
    assert live.steve.add_tag("TAG-CAROL").pk == number
    live.steve.add_tag("TAG-BOB")
    live.clock.advance(2 * HOUR)
    carols = live.session("TAG-CAROL", "CP-3", energy_wh=300)
    assert carols == first
    live.sync()
    live.resume()
    bobs = live.session("TAG-BOB", "CP-2", energy_wh=70)
    live.clock.advance(2 * HOUR)
    live.sync()
    assert live.state_of(carols) == ("confirmed", None)
    assert live.state_of(bobs) == ("held", "identity_conflict")
    assert str(number) in live.words_about(bobs)
    assert {name: live.lago_wh(f"sub-{name}") for name in ("alice", "bob", "carol")} == {
        "alice": 50,
        "bob": 1_000,
        "carol": 300,
    }
    live.assert_conserved()


@every_release
def test_row_37_a_tag_that_was_deleted_and_made_again_is_held_from_its_first_session_on(live):
    live.session("TAG-BOB", "CP-2", energy_wh=10)
    first = live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    live.session("TAG-BOB", "CP-2", energy_wh=20)
    live.steve.delete_tag("TAG-ALICE")
    new = live.session("TAG-ALICE", energy_wh=70)  # StEvE makes the tag anew; whose is it now?
    live.sync()  # long before the list of tags is read again
    assert live.steve_calls("/ocppTags") == live.steve_calls("/ocppTags")[:1]
    assert live.state_of(new) == ("held", "identity_conflict")
    assert live.state_of(first) == ("confirmed", None)
    assert "number" in live.words_about(new)
    review.acknowledge_identity(IdTag.objects.get(text="TAG-ALICE").pk, note="the same card", by="test")
    live.clock.advance(2 * HOUR)
    live.sync()
    assert live.state_of(new) == ("confirmed", None)
    assert live.lago_wh("sub-alice") == 1_070
    live.assert_conserved()


@pytest.mark.parametrize("release", ["3.7.1", "3.14.1"])
def test_row_37_what_waits_to_be_sent_is_held_when_its_tag_becomes_doubtful(live):
    live.session("TAG-BOB", "CP-2", energy_wh=10)
    live.sync()
    live.pause()
    waiting = live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    assert live.state_of(waiting) == ("queued", None)
    live.session("TAG-BOB", "CP-2", energy_wh=20)
    live.steve.delete_tag("TAG-ALICE")
    live.steve.add_tag("TAG-ALICE")
    live.clock.advance(2 * HOUR)
    live.sync()
    live.resume()
    live.sync()
    assert live.state_of(waiting) == ("held", "identity_conflict")
    assert live.lago_wh("sub-alice") == 0


# -- 25: the recorded sessions ---------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["3.7.1", "3.9.0", "3.14.1"])
def test_row_25_every_recorded_wh_that_was_delivered_is_billed_exactly_or_visibly_not(world, release):
    """By the charge points' own truth, not by what StEvE shows; each outcome: test_recorded_sessions."""
    world.steve.load_recording(release, shift=recording_offset(world.clock.now(), release))
    for tag in ("ALICE", "BOB", "CAROL", "DAVE", "FLEET"):
        world.payer(f"TAG-{tag}", tag.lower())
    world.go_live()
    world.sync()
    billed = world.lago_wh_by_session()
    truth = world.steve.truth()
    assert len(truth) == 18
    for steve_id, delivered_wh in truth.items():
        state, reason = world.state_of(steve_id)
        if steve_id in billed:
            assert (state, billed[steve_id]) == ("confirmed", delivered_wh)
        elif state == "excluded":
            assert (reason, delivered_wh) == ("zero_energy", 0)
        else:
            assert state in {"open", "stuck", "held"}
    unbilled = {3, 4, 5, 9} if release == "3.14.1" else {3, 4, 5}
    assert unbilled.isdisjoint(billed)
    world.assert_conserved()


# -- 28: a hole in the numbering -------------------------------------------------------------------------


@every_release
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "running"])
def test_row_28_a_hole_of_27678_ids_is_crossed_in_one_cycle_with_at_most_six_calls(live, release, finished):
    live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    for _ in range(5):
        live.clock.advance(HOUR)
        live.sync()
    live.steve.skip_ids(27_678)
    if finished:
        beyond = live.session("TAG-BOB", "CP-2", energy_wh=2_000)
    else:
        beyond = live.start("TAG-BOB", "CP-2", at=timedelta(minutes=5))
    assert beyond > 27_678
    live.clock.advance(HOUR)
    live.steve.requests.clear()
    run = live.sync()
    asked = live.steve_calls()
    assert len(asked) == run.counts["steve_calls"] <= 6, asked
    assert run.status == "completed"
    assert live.state_of(beyond) == (("confirmed" if finished else "open"), None)
    if not finished:
        live.stop(beyond, "CP-2", at=timedelta(), meter_wh=3_000)
        live.sync()
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (1_000, 2_000)
    live.assert_conserved()


def ids_asked(world):
    """The ids that StEvE was asked for since the log was emptied."""
    queries = [parse_qs(urlsplit(path).query) for path in world.steve_calls("transactionPk")]
    return {int(number) for query in queries for number in query["transactionPk"][0].split(",")}


@pytest.mark.parametrize(("release", "width"), [("3.7.1", 2), ("3.7.1", 27_678), ("3.14.1", 2)])
def test_row_28_a_hole_that_the_watch_has_jumped_over_is_crossed_by_the_next_full_run(live, width):
    live.session("TAG-ALICE", energy_wh=1_000)
    for connector in (2, 3, 4):  # so many that the watch of 3.7 reads the active list
        live.start("TAG-BOB", "CP-2", connector, at=HOUR)
    live.sync()
    last = Source.objects.get().highest_id
    live.steve.skip_ids(width)
    beyond = live.start("TAG-BOB", "CP-3", at=timedelta(minutes=5))
    live.clock.advance(HOUR)
    live.watch()
    assert Source.objects.get().highest_id == beyond
    live.steve.requests.clear()
    live.sync()
    assert ids_asked(live) >= {last + 1, beyond - 1}
    for _ in range(3):  # and that is that
        live.clock.advance(HOUR)
        live.sync()
    live.steve.requests.clear()
    live.sync()
    assert not ids_asked(live) & {last + 1, beyond - 1}


@pytest.mark.parametrize(
    ("release", "width"), [("3.7.1", 3), ("3.7.1", 27_678), ("3.14.1", 80), ("3.14.1", 27_678)]
)
def test_row_28_a_run_that_is_cut_off_at_a_hole_goes_on_there(live, width):
    live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    live.steve.skip_ids(width)
    in_hole = live.start("TAG-BOB", "CP-3", at=timedelta(minutes=5)) - 2
    live.steve.add_fault(Fault("status", path=rf"transactionPk=([0-9]+,)*{in_hole}\b", times=1))
    for _ in range(5):  # 3.7 is asked for one of them in each cycle
        live.clock.advance(HOUR)
        live.steve.requests.clear()
        if live.sync().status == "failed":
            break
    assert in_hole in ids_asked(live)
    live.steve.requests.clear()
    for _ in range(3):
        live.clock.advance(HOUR)
        assert live.sync().status == "completed"
    assert in_hole in ids_asked(live)


# -- 29: a missing feature is not a wrong password -------------------------------------------------------


@every_release
def test_row_29_what_a_release_lacks_is_not_taken_for_a_wrong_password(live, release):
    session = live.session("TAG-ALICE", energy_wh=1_000)
    run = live.sync()
    assert (run.status, run.errors) == ("completed", [])
    assert live.state_of(session) == ("confirmed", None)
    live.steve.requests.clear()
    live.sync()
    assert live.steve_calls("energyValuesOnly") == []  # found out once, not in every run
    live.assert_conserved()


@pytest.mark.parametrize(
    ("release", "credentials"),
    [
        ("3.7.1", {"steve_api_key": "wrong"}),
        ("3.7.1", {"steve_api_key_header": "X-ANOTHER"}),
        ("3.9.0", {"steve_api_key": "wrong"}),
        ("3.9.0", {"steve_api_username": None}),
        ("3.9.0", {"steve_api_username": "nobody"}),
        ("3.14.1", {"steve_api_key": "wrong"}),
        ("3.14.1", {"steve_api_username": None}),
        ("3.14.1", {"steve_api_username": "nobody"}),
    ],
)
def test_row_29_wrong_or_missing_credentials_are_not_taken_for_a_missing_feature(live, credentials):
    live.sync()
    known = Source.objects.get().capabilities
    session = live.session("TAG-ALICE", energy_wh=1_000)
    run = live.sync(**credentials)
    assert run.status == "failed"
    said = errors_of(run)["discover"]
    assert "STEVE_API_" in said
    assert Source.objects.get().capabilities == known
    assert not ChargingSession.objects.exists()
    live.sync()
    assert live.lago_wh_by_session() == {session: 1_000}
    live.assert_conserved()


# -- 33: a large old history -----------------------------------------------------------------------------


def start_on_an_old_history(world, count):
    world.customer("fleet")
    for number in range(1, 51):
        world.map(f"GEN-{number:04d}", "fleet")
    live_from = world.clock.now() - 2 * HOUR
    made = world.steve.generate(count, days=900, end=live_from - HOUR, open_count=1)
    run = world.sync()
    assert (run.status, run.delivery, run.counts["discovered"]) == ("completed", "shadow", count)
    assert world.posts() == []
    world.go_live(live_from)
    run = world.sync()
    assert (run.status, run.delivery, world.posts()) == ("completed", "live", [])
    excluded = world.balance().states["excluded"]
    assert excluded.sessions == made.stopped
    assert excluded.energy_wh == made.delivered_wh
    reasons = world.balance().reasons
    assert reasons["before_go_live"].sessions + reasons["zero_energy"].sessions == made.stopped
    world.map("TAG-NEW", "fleet")
    new = world.session("TAG-NEW", "CP-NEW", energy_wh=3_000)
    world.sync()
    assert world.lago_wh_by_session() == {new: 3_000}
    world.assert_conserved()


@pytest.mark.parametrize("release", ["3.7.1", "3.9.0", "3.14.1"])
def test_row_33_a_first_start_on_an_old_history_sends_nothing_of_it(world):
    start_on_an_old_history(world, 600)


def windows_of(live):
    """The windows of time that StEvE was asked for, newest first, but for the one of every cycle and probes."""
    asked = [parse_qs(urlsplit(path).query) for path in live.steve_calls("from=")]
    windows = [(query["from"][0], query["to"][0]) for query in asked]
    now = live.clock.now().isoformat()
    return [(start, end) for start, end in windows if not now <= end < "2038" and start != NOWHEN["from"]]


@every_release
def test_row_33_a_first_read_of_the_history_goes_on_where_it_broke_off(live):
    numbers = [
        live.session("TAG-ALICE", start=timedelta(days=days), stop=timedelta(days=days) - HOUR)
        for days in range(19, 0, -2)
    ]
    live.steve.skip_ids(20_000)  # so many that they do not fit into one answer
    numbers.append(live.session("TAG-ALICE"))
    live.steve.add_fault(Fault("status", path="from=", skip=3, times=-1))
    run = live.sync()
    assert run.status in {"partial", "failed"}
    broke_off_at = Source.objects.get().progress["backfill"]["before"]
    read = ChargingSession.objects.values_list("steve_id", flat=True)
    assert 0 < read.count() < len(numbers)
    assert min(read) > numbers[0]  # newest first
    said = list(SyncLog.objects.filter(run=run).values_list("message", flat=True))
    assert any(text.startswith("backfill: read back to ") for text in said)  # a person sees how it gets on
    live.steve.clear_faults()
    live.steve.requests.clear()
    assert live.sync().status == "completed"
    then = windows_of(live)
    assert broke_off_at.startswith(then[0][1])  # nothing again that was read already
    assert set(read.all()) == set(numbers)
    live.assert_conserved()


@every_release
def test_row_36_a_first_read_that_broke_off_does_not_go_on_with_another_steve(live):
    for days in range(19, 0, -2):
        live.session("TAG-ALICE", start=timedelta(days=days), stop=timedelta(days=days) - HOUR)
    live.steve.skip_ids(20_000)  # so many that they do not fit into one answer
    live.session("TAG-ALICE")
    live.steve.add_fault(Fault("status", path="from=", skip=3, times=-1))
    live.sync()
    read = set(ChargingSession.objects.values_list("steve_id", flat=True))
    assert read
    live.steve.clear_faults()
    live.steve.snapshot("ours")
    live.steve.reset()  # what answers at the address now is another server's database
    for number in range(3):
        live.session("TAG-BOB", f"CP-STAGING-{number}", start=40 * DAY, stop=40 * DAY - HOUR)
    run = live.sync()
    assert (run.status, run.delivery) == ("failed", "paused")
    assert "answers as another StEvE" in errors_of(run)["discover"]
    assert set(ChargingSession.objects.values_list("steve_id", flat=True)) == read
    live.steve.restore("ours")
    live.resume()
    assert live.sync().status == "completed"
    assert ChargingSession.objects.count() == 11
    live.assert_conserved()


@every_release
def test_row_33_a_short_history_is_read_in_two_windows_however_old_it_is(live):
    numbers = [live.session("TAG-ALICE", start=timedelta(days=days)) for days in (2_000, 300, 19, 0.5)]
    assert live.sync().status == "completed"
    assert len(windows_of(live)) == 2
    assert set(ChargingSession.objects.values_list("steve_id", flat=True)) == set(numbers)
    live.assert_conserved()


@every_release
def test_row_33_the_window_of_the_last_days_is_read_in_pieces_where_it_holds_very_many(live, monkeypatch):
    monkeypatch.setattr(discovery, "MOST_WINDOW_ROWS", 10)
    numbers = [
        live.session("TAG-ALICE", start=hours * HOUR, stop=(hours - 1) * HOUR) for hours in range(52, 3, -2)
    ]
    for _ in range(2):  # by what the first read of the history counted, then by what the window did
        live.steve.requests.clear()
        now = live.clock.now()
        assert live.sync().status == "completed"
        asked = [parse_qs(urlsplit(path).query) for path in live.steve_calls("from=")]
        pieces = [(query["from"][0][:19], query["to"][0][:19]) for query in asked[-3:]]
        assert (pieces[0][0], pieces[-1][1]) == (f"{now - 3 * DAY:%FT%T}", f"{now + 2 * DAY:%FT%T}")
        assert all(earlier[1] == later[0] for earlier, later in pairwise(pieces))
        live.clock.advance(HOUR)
    assert set(ChargingSession.objects.values_list("steve_id", flat=True)) == set(numbers)
    live.assert_conserved()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("release", ["3.9.0", "3.14.1"])
def test_row_33_a_first_start_on_300000_old_sessions_sends_nothing_of_them(world):
    start_on_an_old_history(world, 300_000)
