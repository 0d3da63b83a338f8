"""Ids that show up late: a lower id is committed after a higher one has been seen (facts, StEvE section 4.7).

In the worst case: a charger that was offline delivers a session of nine days ago, so neither the active list
nor the window of the last days ever shows it, and nothing but asking for its id finds it before the night.
"""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest

from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.simulators.server import Fault
from ocpp_billing.steve.idle import MOST_CALLS
from ocpp_billing.sync.models import SyncRun

long = pytest.mark.long
every_family = pytest.mark.parametrize(
    "release",
    ["3.7.1", "3.9.0", pytest.param("3.10", marks=long), pytest.param("3.11", marks=long), "3.14.1"],
)
each_kind = pytest.mark.parametrize("release", ["3.7.1", "3.14.1"])
mostly_new = pytest.mark.parametrize("release", [pytest.param("3.7.1", marks=long), "3.14.1"])
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def begins(world, box="CP-LATE"):
    """A charger that was offline delivers a start of nine days ago; StEvE does not commit it yet."""
    began_at = world.clock.now() - 9 * DAY
    return world.steve.start_transaction(box, 1, "TAG-ALICE", began_at, 1_000, committed=False)


def shows_up(world, number, box="CP-LATE"):
    """It is committed; the charger has waited for that, and delivers the stop."""
    world.steve.commit(number)
    stopped_at = world.clock.now() - 9 * DAY + 60 * MINUTE
    assert world.steve.stop_transaction(number, box, stopped_at, 8_000) is None


def ids_asked(world):
    """The ids that StEvE was asked for since the log was emptied."""
    queries = [parse_qs(urlsplit(path).query) for path in world.steve_calls("transactionPk")]
    return {int(number) for query in queries for number in query["transactionPk"][0].split(",")}


def known(number):
    return ChargingSession.objects.filter(steve_id=number).exists()


@pytest.fixture
def quiet(live):
    """A session is known, and some cycles have passed."""
    live.session("TAG-BOB", "CP-1", energy_wh=100)
    for _ in range(2):
        live.sync()
        live.clock.advance(20 * MINUTE)
    return live


@every_family
def test_an_id_that_shows_up_below_another_is_found_in_the_next_cycle_and_billed_once(quiet):
    late = begins(quiet)
    quiet.session("TAG-BOB", "CP-2", energy_wh=100)
    quiet.sync()
    shows_up(quiet, late)
    run = quiet.sync()
    assert (run.counts["discovered"], quiet.state_of(late)) == (1, ("confirmed", None))
    quiet.sync()
    assert (quiet.lago_wh("sub-alice"), quiet.lago_wh("sub-bob")) == (7_000, 200)
    quiet.assert_conserved()


@each_kind
def test_ids_in_a_new_gap_are_asked_for_a_quarter_of_an_hour_within_four_calls_a_cycle(quiet):
    gap = [begins(quiet, f"CP-LATE-{number}") for number in range(3)]
    quiet.session("TAG-BOB", "CP-2", energy_wh=100)
    quiet.sync()
    asked, cycles = [], []
    for _ in range(8):
        quiet.clock.advance(6 * MINUTE)
        quiet.steve.requests.clear()
        quiet.sync()
        asked.append(ids_asked(quiet) & {*gap})
        cycles.append(len(quiet.steve_calls()))
    stops_read_again = 2 if quiet.steve.release.version < (3, 11, 0) else 1
    assert max(cycles) <= MOST_CALLS + stops_read_again
    assert {*gap} == set().union(*asked[2:])  # each once more when the quarter of an hour is over
    assert any(asked[:2])
    assert not asked[-1]
    shows_up(quiet, gap[1], "CP-LATE-1")
    quiet.sync()
    assert not known(gap[1])
    quiet.clock.advance(DAY)
    quiet.sync()
    assert quiet.state_of(gap[1]) == ("confirmed", None)
    assert quiet.lago_wh("sub-alice") == 7_000


@pytest.mark.parametrize("release", ["3.14.1"])
def test_where_a_call_carries_a_list_the_watch_finds_it_in_the_next_look(quiet):
    late, higher = begins(quiet), quiet.session("TAG-BOB", "CP-2", energy_wh=100)
    quiet.watch()
    assert (known(higher), known(late)) == (True, False)
    shows_up(quiet, late)
    quiet.watch()
    assert quiet.state_of(late) == ("confirmed", None)
    again, _ = begins(quiet, "CP-3"), quiet.session("TAG-BOB", "CP-2", energy_wh=100)
    quiet.sync()  # the gap is noticed
    runs = SyncRun.objects.count()
    quiet.watch()
    assert (known(again), SyncRun.objects.count()) == (False, runs)
    shows_up(quiet, again, "CP-3")
    quiet.watch()
    quiet.watch()  # what is known is no news
    assert (known(again), SyncRun.objects.count()) == (True, runs + 1)


@mostly_new
def test_one_at_the_end_of_the_history_is_found_by_the_first_cycles(live):
    for _ in range(3):
        live.session("TAG-BOB", "CP-1", energy_wh=100)
    late = begins(live)
    live.session("TAG-BOB", "CP-2", energy_wh=100)
    live.sync()
    assert not known(late)
    shows_up(live, late)
    live.sync()
    assert live.state_of(late) == ("confirmed", None)


@pytest.mark.parametrize(
    ("release", "side"),
    [
        ("3.7.1", "below"),
        ("3.14.1", "above"),
        pytest.param("3.7.1", "above", marks=long),
        pytest.param("3.14.1", "below", marks=long),
    ],
)
def test_one_beside_a_wide_hole_is_found_by_one_of_the_next_cycles(quiet, side):
    """Where a call carries one id only, their turns come one after the other."""
    if side == "above":
        quiet.steve.skip_ids(27_678)
    late = begins(quiet)
    if side == "below":
        quiet.steve.skip_ids(27_678)
    quiet.session("TAG-BOB", "CP-2", energy_wh=100)
    quiet.sync()
    shows_up(quiet, late)
    for _ in range(1 if quiet.steve.release.list_filters else 8):
        quiet.clock.advance(4 * MINUTE)
        quiet.sync()
    assert quiet.state_of(late) == ("confirmed", None)


@mostly_new
def test_a_call_that_fails_drops_no_id_from_those_that_are_asked_for_again(quiet):
    late = begins(quiet)
    quiet.session("TAG-BOB", "CP-2", energy_wh=100)
    quiet.sync()
    shows_up(quiet, late)
    quiet.steve.add_fault(Fault("status", path="transactionPk=", times=10))
    assert quiet.sync().status == "failed"
    quiet.steve.clear_faults()
    quiet.sync()
    quiet.sync()
    assert quiet.state_of(late) == ("confirmed", None)
