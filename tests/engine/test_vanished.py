"""What StEvE shows no longer: kept, flagged and never un-billed; and told from a StEvE that was restored."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ocpp_billing.billing import control, review
from ocpp_billing.charging.models import ChargingSession, IdTag
from ocpp_billing.sync.models import SyncLog

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
# Single ids, windows on stops, lists of ids.
each_kind = pytest.mark.parametrize(
    "release", ["3.7.1", pytest.param("3.9.0", marks=pytest.mark.long), "3.14.1"]
)


def row(steve_id):
    return ChargingSession.objects.get(steve_id=steve_id, superseded_at=None)


def vanish(world, tag, *sessions):
    """The tag is deleted, and we have noticed."""
    world.steve.snapshot()
    world.steve.delete_tag(tag)
    a_night(world)
    assert all(row(session).vanished_at for session in sessions)


def come_back(world, *sessions):
    """An operator has put it back, and we have noticed."""
    world.steve.restore()
    a_night(world)
    assert not any(row(session).vanished_at for session in sessions)


def a_night(world):
    world.clock.advance(DAY)
    world.sync()


# -- a session or a tag that is gone ---------------------------------------------------------------------


def test_a_deleted_tag_takes_no_bill_back_and_both_are_flagged_until_they_are_shown_again(live):
    billed = live.session("TAG-ALICE", energy_wh=4_000)
    live.session("TAG-BOB", "CP-2", energy_wh=1_000)
    live.sync()
    before = row(billed)
    vanish(live, "TAG-ALICE", billed)
    assert IdTag.objects.get(text="TAG-ALICE").vanished_at is not None
    assert live.state_of(billed) == ("confirmed", None)
    assert live.lago_wh("sub-alice") == 4_000
    live.assert_conserved()
    come_back(live, billed)
    assert IdTag.objects.get(text="TAG-ALICE").vanished_at is None
    after = row(billed)
    assert (after.revision, after.changed_at, after.decisions.count()) == (1, before.changed_at, 1)
    assert live.lago_wh_by_session()[billed] == 4_000
    live.assert_conserved()


def test_what_a_person_accepted_holds_when_the_session_comes_back_as_it_was(live):
    held = live.session("TAG-ALICE", start=3 * HOUR, stop=2 * HOUR, energy_wh=600_000)
    live.session("TAG-BOB", "CP-2", energy_wh=1_000)
    live.sync()
    assert live.state_of(held) == ("held", "implausible")
    vanish(live, "TAG-ALICE", held)
    assert live.state_of(held) == ("held", "implausible")
    live.pause()
    review.accept(row(held).pk, note="a lorry", by="test")
    come_back(live, held)
    live.resume()
    live.sync()
    live.sync()
    assert live.lago_wh_by_session()[held] == 600_000
    live.assert_conserved()


def test_a_tag_that_cannot_be_read_is_not_taken_for_a_deleted_one(live):
    live.session("TAG-ALICE")
    live.session("TAG-BOB", "CP-2")
    live.sync()
    live.steve.break_tag("TAG-ALICE", ocppTagPk="seven")
    live.clock.advance(DAY)
    assert live.sync().status == "partial"
    assert IdTag.objects.get(text="TAG-ALICE").vanished_at is None
    live.steve.break_tag("TAG-ALICE")
    live.steve.delete_tag("TAG-ALICE")
    a_night(live)
    assert IdTag.objects.get(text="TAG-ALICE").vanished_at is not None


def test_what_a_person_read_off_the_meter_stays_billed_when_the_session_comes_back(live):
    running = live.start("TAG-ALICE", at=3 * HOUR, meter_wh=1_000)
    live.session("TAG-BOB", "CP-2", energy_wh=1_000)
    live.sync()
    vanish(live, "TAG-ALICE", running)
    assert live.state_of(running) == ("stuck", None)
    review.enter_reading(
        row(running).pk, stop_wh=8_000, stopped_at=live.at(20 * HOUR), note="seen", by="test"
    )
    live.sync()
    live.sync()
    assert live.lago_wh_by_session()[running] == 7_000
    come_back(live, running)
    assert live.state_of(running) == ("confirmed", None)
    assert live.lago_wh_by_session()[running] == 7_000
    live.assert_conserved()


@each_kind
def test_an_open_session_that_comes_back_is_open_again_and_billed_when_it_stops(live):
    running = live.start("TAG-ALICE", at=HOUR, meter_wh=1_000)
    live.session("TAG-BOB", "CP-2", energy_wh=1_000)
    live.sync()
    live.settings["STUCK_AFTER_HOURS"] = "1000"
    vanish(live, "TAG-ALICE", running)
    assert live.state_of(running) == ("stuck", None)
    come_back(live, running)
    assert live.state_of(running) == ("open", None)
    live.stop(running, at=HOUR, meter_wh=9_000)
    live.sync()
    live.sync()
    assert live.lago_wh_by_session()[running] == 8_000


def test_one_that_comes_back_with_other_values_is_judged_anew(live):
    held = live.session("TAG-ALICE", start=3 * HOUR, stop=2 * HOUR, energy_wh=600_000)
    live.session("TAG-BOB", "CP-2", energy_wh=1_000)
    live.sync()
    vanish(live, "TAG-ALICE", held)
    review.accept(row(held).pk, note="a lorry", by="test")
    live.steve.restore()
    live.show_as(held, stopValue="901000")
    a_night(live)
    assert (live.state_of(held), row(held).vanished_at) == (("held", "implausible"), None)
    assert row(held).revision == 2


# -- was StEvE restored, or was something deleted? -------------------------------------------------------


def paused(world):
    status = control.read_status(world.config())
    return status.pause_reason if status.mode == "paused" else None


@each_kind
def test_the_last_sessions_that_went_with_their_tag_are_no_sign_of_a_backup(live):
    first = live.session("TAG-ALICE", "CP-1", energy_wh=100)
    kept = [live.session("TAG-BOB", "CP-1", energy_wh=100) for _ in range(3)]
    last = [live.session("TAG-ALICE", "CP-1", energy_wh=100) for _ in range(12)]
    live.sync()
    live.steve.delete_tag("TAG-ALICE")
    run = live.sync()
    assert (run.status, run.delivery, paused(live)) == ("completed", "live", None)
    assert SyncLog.objects.filter(message__contains="deleted in StEvE with their tag").exists()
    assert [row(number).vanished_at is None for number in kept] == [True] * 3
    assert all(row(number).vanished_at for number in last)
    new = live.session("TAG-BOB", "CP-1", energy_wh=700)
    live.sync()
    live.sync()
    assert live.lago_wh_by_session() == dict.fromkeys([first, *kept, *last], 100) | {new: 700}
    live.assert_conserved()


@each_kind
def test_nor_are_those_that_went_with_their_charge_box(live):
    live.session("TAG-ALICE", "CP-2", energy_wh=100)
    live.session("TAG-BOB", "CP-1", energy_wh=100)
    last = [live.session(f"TAG-{name}", "CP-2", energy_wh=100) for name in ("ALICE", "BOB") * 3]
    live.sync()
    live.steve.delete_charge_box("CP-2")
    run = live.sync()
    assert (run.status, run.delivery, paused(live)) == ("completed", "live", None)
    assert all(row(number).vanished_at for number in last)
    assert live.lago_wh() == 800


@each_kind
def test_nor_are_those_of_two_tags_that_were_deleted_together(live):
    live.payer("TAG-CAROL", "carol")
    for name in ("ALICE", "BOB", "CAROL"):
        live.session(f"TAG-{name}", energy_wh=100)
    live.session("TAG-CAROL", energy_wh=100)
    last = [live.session(f"TAG-{name}", energy_wh=100) for name in ("ALICE", "BOB") * 3]
    live.sync()
    for name in ("ALICE", "BOB"):
        live.steve.delete_tag(f"TAG-{name}")
    run = live.sync()
    assert (run.status, run.delivery, paused(live)) == ("completed", "live", None)
    assert all(row(number).vanished_at for number in last)


@each_kind
def test_a_steve_that_lost_its_last_sessions_of_a_tag_that_it_still_has_was_restored(live):
    """Nothing new began since: only that tag and charge box are still there tells it."""
    before = [live.session("TAG-ALICE", energy_wh=100), live.session("TAG-BOB", energy_wh=100)]
    live.sync()
    live.steve.snapshot()
    lost = [live.session("TAG-ALICE", energy_wh=100) for _ in range(7)]
    live.sync()
    live.steve.restore()
    run = live.sync()
    assert run.delivery == "paused"
    assert f"ids after {before[-1]} mean new sessions" in paused(live)
    assert all(row(number).vanished_at for number in lost)
    assert live.lago_wh() == 900


@each_kind
def test_where_a_backup_cannot_be_told_from_a_deleted_tag_it_is_when_it_gives_a_number_out_again(live):
    live.payer("TAG-NEW", "new")
    before = live.session("TAG-ALICE", energy_wh=100)
    live.sync()
    live.steve.snapshot()
    lost = [live.session("TAG-NEW", energy_wh=100) for _ in range(7)]
    live.sync()
    live.steve.restore()
    run = live.sync()
    assert (run.status, paused(live)) == ("completed", None)
    assert all(row(number).vanished_at for number in lost)
    again = live.session("TAG-BOB", "CP-2", energy_wh=50)
    assert again == lost[0]
    run = live.sync()
    assert run.delivery == "paused"
    assert f"ids after {before} mean new sessions" in paused(live)
    assert live.lago_wh() == 800
    live.resume()
    live.sync()
    live.sync()
    assert (live.state_of(again), live.lago_wh("sub-bob")) == (("confirmed", None), 50)
    live.assert_conserved()


def test_sessions_of_many_new_tags_that_are_all_gone_are_a_sign_of_a_backup(live):
    live.session("TAG-ALICE", energy_wh=100)
    live.sync()
    live.steve.snapshot()
    for number in range(6):
        live.session(f"TAG-NEW-{number}", "CP-2" if number % 2 else "CP-3")
    live.sync()
    live.steve.restore()
    assert live.sync().delivery == "paused"


# -- the last few are lost, and new ones have begun before a full run looks again ------------------------


def lose_the_last(world, number):
    """StEvE is restored from a backup of minutes ago, which lacks so many; returns what was kept and lost."""
    kept = [world.session("TAG-ALICE", energy_wh=100) for _ in range(8)]
    world.sync()
    world.steve.snapshot()
    lost = [world.session("TAG-ALICE", energy_wh=200) for _ in range(number)]
    world.sync()
    world.steve.restore()
    return kept, lost


def look_and_read(world):
    """The watch lane looks until it finds nothing new, and two full runs follow."""
    for _ in range(4):
        world.watch()
    return [world.sync(), world.sync()]


def assert_billed_once(world, kept, lost, again):
    """After a person has looked, all that was lost and all that came instead is billed, each once."""
    assert f"ids after {kept[-1]} mean new sessions" in paused(world)
    world.resume()
    runs = [world.sync(), world.sync()]
    assert [(run.status, run.delivery, run.errors) for run in runs] == [("completed", "live", [])] * 2
    superseded = ChargingSession.objects.exclude(superseded_at=None)
    assert sorted(superseded.values_list("steve_id", flat=True)) == [each for each in lost if each in again]
    assert {world.state_of(number) for number in again} == {("confirmed", None)}
    assert not any(row(number).vanished_at for number in [*kept, *again])
    assert world.lago_wh("sub-alice") == 100 * len(kept) + 200 * len(lost)
    assert world.lago_wh("sub-bob") == 50 * len(again)
    world.assert_conserved()


@each_kind
@pytest.mark.parametrize(
    "number", [2, pytest.param(1, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long)]
)
def test_numbers_that_are_given_out_anew_after_their_loss_was_noticed_are_recorded(live, number):
    kept, lost = lose_the_last(live, number)
    run = live.sync()  # they may just as well have been deleted with a tag
    assert (run.status, paused(live)) == ("completed", None)
    again = [live.session("TAG-BOB", "CP-2", energy_wh=50) for _ in range(number + 1)]
    assert again[:-1] == lost
    first, second = look_and_read(live)
    assert (first.status, second.status) == ("completed", "completed")
    assert_billed_once(live, kept, lost, again)


@each_kind
@pytest.mark.parametrize("number", [1, pytest.param(4, marks=pytest.mark.long)])
def test_numbers_that_are_given_out_anew_before_anybody_noticed_are_recorded(live, number):
    kept, lost = lose_the_last(live, number)
    again = [live.session("TAG-BOB", "CP-2", energy_wh=50) for _ in range(number + 7)]
    assert not live.watch()
    look_and_read(live)
    assert_billed_once(live, kept, lost, again)


def test_a_steve_that_was_restored_twice_within_an_hour_bills_each_session_once(live):
    _, lost = lose_the_last(live, 3)
    live.sync()
    again = [live.session("TAG-BOB", "CP-2", energy_wh=50) for _ in range(4)]
    look_and_read(live)
    live.resume()
    live.sync()
    live.steve.restore()
    live.sync()
    third = [live.session("TAG-ALICE", "CP-3", energy_wh=7) for _ in range(5)]
    look_and_read(live)
    assert "restored from a backup" in paused(live)
    live.resume()
    for _ in range(2):
        assert live.sync().status == "completed"
    assert live.lago_wh("sub-alice") == 800 + 600 + 7 * len(third)
    assert live.lago_wh("sub-bob") == 50 * len(again)
    assert len({*lost, *again}) == len(again)
    live.assert_conserved()


@each_kind
def test_a_single_other_session_under_a_known_number_is_recorded_by_nobody(live):
    """Later ones, known since before, are what they were: StEvE was not restored, and somebody has to look."""
    known = [live.session("TAG-ALICE", energy_wh=100) for _ in range(8)]
    live.sync()
    live.sync()
    live.show_as(known[-2], startValue="77")
    live.watch()
    run = live.sync()
    assert (run.status, run.delivery) == ("failed", "paused")
    assert f"known ({known[-2]})" in paused(live)
    assert ChargingSession.objects.count() == len(known)
    assert live.lago_wh() == 800


@each_kind
def test_another_steve_is_recorded_neither_by_the_watch_nor_after_its_last_sessions_went(live):
    kept, _ = lose_the_last(live, 2)
    live.sync()
    live.steve.reset()
    for _ in range(len(kept) + 5):
        live.session("TAG-BOB", "CP-2", energy_wh=50)
    assert not live.watch()
    for run in (live.sync(), live.sync()):
        assert (run.status, run.delivery) == ("failed", "paused")
    assert "answers as another StEvE" in paused(live)
    assert ChargingSession.objects.count() == len(kept) + 2
    assert live.lago_wh("sub-bob") == 0
