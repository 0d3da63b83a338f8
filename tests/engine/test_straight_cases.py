"""A run from StEvE to Lago: what stops, what runs on, what is malformed, what Lago would not bill."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ocpp_billing.billing.models import UsageEvent

HOUR = timedelta(hours=1)
KINDS_OF_RELEASE = ["3.6", "3.7", "3.9", "3.10", "3.12", "3.14"]
STORES = ["postgres", "postgres-1.32", "postgres-1.30", "clickhouse"]
every_kind_of_release = pytest.mark.parametrize("release", KINDS_OF_RELEASE)


@pytest.mark.parametrize(
    ("release", "store"),
    [
        # Every release with two of the stores, which meet three of the releases.
        pytest.param(release, store, marks=[pytest.mark.long] if (n - m) % 4 > 1 else [])
        for n, release in enumerate(KINDS_OF_RELEASE)
        for m, store in enumerate(STORES)
    ],
)
def test_a_finished_session_is_billed_once(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("TAG-ALICE", energy_wh=12_345)
    run = world.sync()
    assert (run.status, run.errors) == ("completed", [])
    assert world.state_of(session) == ("confirmed", None)
    world.sync()
    assert len(world.posts()) == 1
    assert world.lago_wh("sub-alice") == 12_345
    world.assert_conserved()


@every_kind_of_release
def test_a_running_session_over_several_runs_is_billed_once_when_it_stops(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    session = world.start("TAG-ALICE", meter_wh=5_000)
    for _ in range(3):
        assert world.sync().status == "completed"
        assert world.state_of(session) == ("open", None)
        world.clock.advance(HOUR)
    assert world.posts() == []
    assert world.stop(session, at=timedelta(minutes=1), meter_wh=25_250) is None
    run = world.sync()
    assert (run.counts["discovered"], run.counts["changed"], run.counts["confirmed"]) == (0, 1, 1)
    world.sync()
    assert len(world.posts()) == 1
    assert world.lago_wh() == 20_250
    world.assert_conserved()


def test_the_event_says_what_lago_and_its_invoice_need(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("TAG-ALICE", "CP-7", 2, start_wh=1_000, stop_wh=13_345)
    world.sync()
    (entry,) = world.lago.ledger()
    assert entry["transaction_id"].startswith(f"steve:main:{session}-")
    assert entry["timestamp"] == "2026-03-17T11:00:00.000Z"
    assert entry["properties"] == {
        "kwh": "12.345",
        "charge_box_id": "CP-7",
        "connector_id": "2",
        "started_at": "2026-03-17T10:00:00Z",
        "stopped_at": "2026-03-17T11:00:00Z",
        "duration_s": "3600",
        "steve_transaction_id": str(session),
        "id_tag_last4": "LICE",
    }


def test_more_sessions_than_a_batch_holds_all_arrive_by_several_threads(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    for number in range(250):
        world.session("TAG-ALICE", f"CP-{number}", energy_wh=1_000 + number)
    run = world.sync(delivery_concurrency=2)
    assert run.counts["confirmed"] == 250
    assert world.lago_wh() == sum(1_000 + number for number in range(250))
    world.assert_conserved()


def test_the_pace_is_kept(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    for number in range(250):
        world.session("TAG-ALICE", f"CP-{number}")
    run = world.sync(delivery_events_per_second=50, delivery_concurrency=2)
    assert run.counts["accepted"] == 250
    assert run.ended_at - run.started_at == timedelta(seconds=4)  # the third batch leaves after 200 / 50


# -- malformed rows ------------------------------------------------------------------------------------


def test_one_malformed_row_is_set_aside_and_the_others_go_on(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    before = world.session("TAG-ALICE", energy_wh=1_000)
    bad = world.session("TAG-ALICE", energy_wh=64_000)
    world.show_as(bad, startValue="NaN")
    after = world.session("TAG-ALICE", energy_wh=2_000)
    run = world.sync()
    assert (run.status, run.counts["malformed"]) == ("partial", 1)
    assert world.state_of(before) == world.state_of(after) == ("confirmed", None)
    assert world.lago_wh() == 3_000
    assert world.balance().malformed == 1
    world.assert_conserved()


def test_a_row_that_reads_well_again_is_billed_and_no_longer_counted_as_malformed(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("TAG-ALICE", start_wh=1_000, stop_wh=65_000)
    world.show_as(session, stopValue="")
    assert world.sync().counts["malformed"] == 1
    world.clock.advance(HOUR)
    world.show_as(session, stopValue="65000")
    world.sync()
    assert world.balance().malformed == 0
    assert world.state_of(session) == ("confirmed", None)
    assert world.lago_wh() == 64_000
    world.assert_conserved()


def test_a_malformed_row_is_reported_once_not_in_every_run(world):
    session = world.session("TAG-ALICE")
    world.show_as(session, stopValue="NaN")
    assert world.sync().status == "partial"
    run = world.sync()
    assert (run.status, run.counts["malformed"]) == ("completed", 0)
    assert world.balance().malformed == 1


# -- billing periods -----------------------------------------------------------------------------------


@pytest.fixture
def closed_month(world):
    """February's bill was made; a session of February turns up afterwards."""
    world.clock.set(datetime(2026, 2, 27, 12, tzinfo=UTC))
    world.begins_at = datetime(2026, 1, 1, tzinfo=UTC)
    world.payer("TAG-ALICE", "alice", billing_time="calendar")
    world.go_live()
    world.clock.set(datetime(2026, 3, 2, 12, tzinfo=UTC))
    world.lago.run_billing()
    world.late = world.session("TAG-ALICE", start=72 * HOUR, stop=71 * HOUR, energy_wh=9_000)
    return world


def test_a_session_of_a_closed_period_is_held_as_late(closed_month):
    world = closed_month
    run = world.sync(late_policy="hold")
    assert run.status == "completed"
    assert world.state_of(world.late) == ("held", "late_period")
    assert world.posts() == []
    world.assert_conserved()


def test_by_policy_a_late_session_goes_into_the_current_period(closed_month):
    world = closed_month
    now = world.clock.now()
    world.sync(late_policy="current_period")
    assert world.state_of(world.late) == ("confirmed", None)
    (entry,) = world.lago.ledger()
    assert (entry["state"], entry["timestamp"]) == ("open", now.strftime("%Y-%m-%dT%H:%M:%S.000Z"))
    told = {name: entry["properties"][name] for name in ("started_at", "stopped_at", "duration_s")}
    assert told == {
        "started_at": "2026-02-27T12:00:00Z",
        "stopped_at": "2026-02-27T13:00:00Z",
        "duration_s": "3600",
    }
    assert world.lago_wh() == 9_000
    world.assert_conserved()


def test_a_late_session_that_was_held_is_billed_once_the_policy_allows_it(closed_month):
    world = closed_month
    world.sync(late_policy="hold")
    world.sync(late_policy="current_period")
    assert world.state_of(world.late) == ("confirmed", None)
    assert world.lago_wh() == 9_000


def test_an_event_queued_when_its_period_closes_is_held_not_sent(world):
    world.clock.set(datetime(2026, 2, 28, 22, tzinfo=UTC))
    world.begins_at = datetime(2026, 1, 1, tzinfo=UTC)
    world.payer("TAG-ALICE", "alice", billing_time="calendar")
    world.go_live()
    world.pause()
    session = world.session("TAG-ALICE")
    world.sync()
    assert world.state_of(session) == ("queued", None)
    world.clock.set(datetime(2026, 3, 1, 12, tzinfo=UTC))
    world.resume()
    world.sync()
    assert world.state_of(session) == ("held", "late_period")
    assert world.posts() == []
    world.assert_conserved()


# -- what Lago would accept and never bill -------------------------------------------------------------


def test_a_customer_that_lago_does_not_know_is_held_until_it_does(world):
    world.plan()
    world.map("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("TAG-ALICE", energy_wh=3_000)
    run = world.sync()
    assert run.status == "completed"
    assert world.state_of(session) == ("held", "no_subscription")
    world.customer("alice")
    world.clock.advance(HOUR)
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert world.lago_wh() == 3_000


def test_a_subscription_that_the_customer_does_not_have_is_held(world):
    world.customer("alice")
    world.map("TAG-ALICE", "alice", subscription="another")
    world.go_live()
    session = world.session("TAG-ALICE")
    world.sync()
    assert world.state_of(session) == ("held", "no_subscription")
    assert "another" in world.words_about(session)
    assert world.posts() == []


def test_two_subscriptions_that_charge_the_metric_are_ambiguous(world):
    world.customer("alice", "home")
    world.customer("alice", "work")
    world.map("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("TAG-ALICE")
    world.sync()
    assert world.state_of(session) == ("held", "ambiguous_subscription")
    assert "home, work" in world.words_about(session)


def test_a_second_subscription_that_does_not_charge_the_metric_does_not_matter(world):
    world.customer("alice")
    world.plan("parking", metric_code=None)
    world.customer("alice", "parking-alice", "parking")
    world.map("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("TAG-ALICE")
    world.sync()
    assert world.state_of(session) == ("confirmed", None)


def test_a_plan_without_a_charge_on_the_metric_is_held(world):
    world.plan("parking", metric_code=None)
    world.customer("alice", plan="parking")
    world.map("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("TAG-ALICE")
    world.sync()
    assert world.state_of(session) == ("held", "metric_not_charged")
    assert "parking" in world.words_about(session)
    assert world.posts() == []


@pytest.mark.parametrize(
    "settings", [{"lago_metric_code": "unknown_metric"}, {"lago_metric_code": "ev_sessions"}]
)
def test_a_metric_that_lago_lacks_or_does_not_sum_is_held(world, settings):
    world.payer("TAG-ALICE", "alice")
    world.lago.create_metric("ev_sessions", None, aggregation_type="count_agg")
    world.go_live()
    session = world.session("TAG-ALICE")
    world.sync(**settings)
    assert world.state_of(session) == ("held", "metric_not_charged")
    assert world.posts() == []


def test_an_event_carries_its_amount_under_the_field_that_the_metric_sums(world):
    world.lago.create_metric("ev_charging_kwh", "energy")
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.session("TAG-ALICE", energy_wh=12_345)
    world.sync()
    (event,) = UsageEvent.objects.all()
    assert event.field_name == "energy"
    assert world.lago_wh() == 12_345
