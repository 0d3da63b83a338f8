"""Shadow mode, going live, pausing: nothing is sent before somebody says so."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ocpp_billing.accounts.models import AuditEntry
from ocpp_billing.billing.adopt import adopt_events, look_for_unknown_events
from ocpp_billing.billing.control import ControlError, go_live, preview_go_live, read_status
from ocpp_billing.sync.clients import open_clients
from tests.world import BETWEEN_RUNS, back_up_ledger, empty_ledger, restore_ledger

HOUR = timedelta(hours=1)


def test_shadow_mode_decides_everything_and_sends_nothing(world):
    world.payer("TAG-ALICE", "alice")
    session = world.session("TAG-ALICE", energy_wh=12_345)
    run = world.sync()
    assert (run.status, run.delivery) == ("completed", "shadow")
    assert (run.counts["queued"], run.counts["accepted"]) == (1, 0)
    assert world.state_of(session) == ("queued", None)
    assert world.posts() == []
    assert world.balance().states["queued"].energy_wh == 12_345
    world.assert_conserved()


def test_the_preview_shows_what_would_be_billed_per_customer(world):
    world.payer("TAG-ALICE", "alice")
    world.payer("TAG-BOB", "bob")
    world.session("TAG-ALICE", start=72 * HOUR, stop=71 * HOUR, energy_wh=1_000)
    world.session("TAG-ALICE", energy_wh=2_000)
    world.session("TAG-BOB", "CP-2", energy_wh=4_000)
    world.sync()
    lines = preview_go_live(world.config(), world.clock.now() - 24 * HOUR)
    assert [(line.customer, line.subscription, line.sessions, line.energy_wh) for line in lines] == [
        ("bob", "sub-bob", 1, 4_000),
        ("alice", "sub-alice", 1, 2_000),
    ]


def test_going_live_excludes_what_stopped_before_and_sends_the_rest(world):
    world.payer("TAG-ALICE", "alice")
    live_from = world.clock.now() - 2 * HOUR
    before = world.session("TAG-ALICE", "CP-1", 1, live_from - HOUR, live_from - timedelta(seconds=1))
    at = world.session("TAG-ALICE", "CP-2", 1, live_from - HOUR, live_from, energy_wh=7_000)
    world.sync()
    world.go_live(live_from)
    run = world.sync()
    assert run.delivery == "live"
    assert world.state_of(before) == ("excluded", "before_go_live")
    assert world.state_of(at) == ("confirmed", None)
    assert world.lago_wh() == 7_000
    world.assert_conserved()


def test_a_session_found_after_going_live_that_stopped_before_is_excluded(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live(world.clock.now() - 2 * HOUR)
    late = world.session("TAG-ALICE", start=5 * HOUR, stop=4 * HOUR)
    world.sync()
    assert world.state_of(late) == ("excluded", "before_go_live")
    assert world.posts() == []


def test_billing_start_in_the_environment_is_live_from_there(world):
    world.payer("TAG-ALICE", "alice")
    start = world.clock.now() - 24 * HOUR
    before = world.session("TAG-ALICE", start=30 * HOUR, stop=29 * HOUR)
    after = world.session("TAG-ALICE", energy_wh=3_000)
    run = world.sync(billing_start=start.isoformat())
    assert run.delivery == "live"
    assert world.state_of(before) == ("excluded", "before_go_live")
    assert world.state_of(after) == ("confirmed", None)
    assert world.lago_wh() == 3_000
    world.assert_conserved()


def test_billing_start_is_a_date_in_the_zone_of_the_settings(world):
    world.payer("TAG-ALICE", "alice")
    session = world.session("TAG-ALICE", stop=world.clock.now().replace(hour=2), start=24 * HOUR)
    settings = {"billing_start": f"{world.clock.now():%Y-%m-%d}"}
    world.sync(**settings, sync_timezone="Pacific/Honolulu")  # the day begins ten hours later there
    assert world.state_of(session) == ("excluded", "before_go_live")
    world.sync(**settings, sync_timezone="UTC")
    assert world.state_of(session) == ("confirmed", None)


def test_billing_start_moved_back_bills_what_it_had_excluded(world):
    world.payer("TAG-ALICE", "alice")
    session = world.session("TAG-ALICE", start=30 * HOUR, stop=29 * HOUR, energy_wh=2_000)
    world.sync(billing_start=(world.clock.now() - 24 * HOUR).isoformat())
    run = world.sync(billing_start=(world.clock.now() - 48 * HOUR).isoformat())
    assert world.state_of(session) == ("confirmed", None)
    assert world.lago_wh() == 2_000
    first, second = AuditEntry.objects.filter(action="delivery.go_live").order_by("id")
    assert (first.actor, first.before) == ("BILLING_START", None)
    assert (second.actor, second.before) == ("BILLING_START", first.after)
    assert second.after == {"live_from": (world.clock.now() - 48 * HOUR - BETWEEN_RUNS).isoformat()}
    (line,) = run.log.filter(action="run.billing_start")
    assert line.message == (
        "By BILLING_START billing is live from 2026-03-15T12:01:00+00:00; before, it was live from "
        "2026-03-16T12:00:00+00:00. What that changes is decided anew."
    )


def test_going_live_is_refused_while_the_environment_decides(world):
    config = world.config(billing_start="2026-03-01")
    with pytest.raises(ControlError, match="BILLING_START is set in the environment"):
        go_live(config, world.clock.now(), by="test")


def test_going_live_twice_is_refused(world):
    world.go_live()
    with pytest.raises(ControlError, match="already live"):
        world.go_live(world.clock.now())


def test_while_paused_sessions_queue_up_and_go_out_once_when_resumed(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.pause()
    session = world.session("TAG-ALICE", energy_wh=5_000)
    run = world.sync()
    assert (run.status, run.delivery) == ("completed", "paused")
    assert world.state_of(session) == ("queued", None)
    assert world.posts() == []
    world.resume()
    run = world.sync()
    assert run.delivery == "live"
    assert world.state_of(session) == ("confirmed", None)
    assert (len(world.posts()), world.lago_wh()) == (1, 5_000)
    world.sync()
    assert len(world.posts()) == 1
    world.assert_conserved()


def test_another_organisations_key_stops_delivery_and_says_so(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.sync()
    ours, world.lago.organization_id = world.lago.organization_id, "1a901a90-0000-4000-8000-00000000beef"
    session = world.session("TAG-ALICE", energy_wh=5_000)
    run = world.sync()
    assert (run.status, run.delivery) == ("failed", "paused")
    assert "LAGO_API_KEY belongs to the organisation" in run.errors[0]["error"]
    assert world.state_of(session) == ("queued", None)
    assert world.posts() == []
    world.lago.organization_id = ours
    world.resume()
    world.sync()
    assert world.lago_wh() == 5_000
    world.assert_conserved()


def test_a_run_that_could_not_begin_says_all_the_same_whether_billing_is_live(world):
    world.go_live()
    run = world.sync(lago_api_key=None)
    assert (run.status, run.delivery) == ("failed", "live")
    assert "LAGO_API_KEY" in run.errors[0]["error"]


@pytest.fixture
def changing(two_metrics):
    two_metrics.go_live()
    return two_metrics


def test_what_was_sent_for_an_old_metric_is_confirmed_after_the_metric_changed(changing):
    """The code of the metric is changed in the middle of a period, while an event is not confirmed yet."""
    world = changing
    old = world.session("TAG-ALICE", "CP-1", energy_wh=2_000)
    world.sync(confirm_settle_seconds=3600)
    assert world.state_of(old) == ("accepted", None)
    new = world.session("TAG-ALICE", "CP-2", energy_wh=3_000)
    for _ in range(2):
        world.sync(lago_metric_code="energy_kwh", confirm_settle_seconds=0)
        world.clock.advance(timedelta(minutes=20))
    assert world.state_of(old) == ("confirmed", None)
    assert world.state_of(new) == ("confirmed", None)
    assert len(world.lago_events()) == 2
    world.assert_conserved()


@pytest.mark.parametrize("store", ["postgres", "clickhouse"])
def test_a_ledger_from_before_the_metric_changed_learns_what_was_sent_for_the_old_one(changing):
    world = changing
    known = world.session("TAG-ALICE", "CP-1", energy_wh=2_000)
    world.sync()
    backup = back_up_ledger()
    forgotten = world.session("TAG-ALICE", "CP-2", energy_wh=3_000)
    world.sync()
    world.settings["LAGO_METRIC_CODE"] = "energy_kwh"
    world.sync()
    billed = world.lago_events()

    restore_ledger(backup)
    run = world.sync()

    assert (run.status, run.delivery) == ("failed", "paused")
    assert "ocpp-billing adopt" in str(run.errors)
    with open_clients(world.config()) as (_, lago):
        adoption = adopt_events(world.config(), lago, by="test", say=str)
    assert (adoption.seen, adoption.adopted, adoption.conflicts) == (2, 1, [])
    world.resume()
    world.sync()
    world.sync()
    assert world.lago_events() == billed
    assert world.lago_wh_by_session() == {known: 2_000, forgotten: 3_000}
    assert world.state_of(forgotten) == ("confirmed", None)
    world.assert_conserved()


def test_lago_is_asked_for_the_metric_that_is_set_before_the_one_that_was_sent_last(changing):
    world = changing
    world.session("TAG-ALICE", energy_wh=2_000)
    world.sync()
    config = world.config(lago_metric_code="energy_kwh")
    asked = len(world.lago.requests)
    with open_clients(config) as (_, lago), CaptureQueriesContext(connection) as queries:
        assert look_for_unknown_events(config, lago) is None
    paths = [request["path"] for request in world.lago.requests[asked:]]
    assert ["code=energy_kwh" in path for path in paths] == [True, False]
    assert "payload" not in str(queries.captured_queries)


def test_nothing_is_adopted_under_a_metric_that_lago_does_not_have(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.session("TAG-ALICE", energy_wh=2_000)
    world.sync()
    empty_ledger()
    world.go_live()
    world.pause()
    world.sync()
    config = world.config(lago_metric_code="misspelt")
    with open_clients(config) as (_, lago), pytest.raises(ControlError, match="LAGO_METRIC_CODE is misspelt"):
        adopt_events(config, lago, by="test", say=str)
    assert read_status(config).mode == "paused"
