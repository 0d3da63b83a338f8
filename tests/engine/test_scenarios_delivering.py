"""What must never happen again, by the numbers of docs/reference/scenarios.md: delivering to Lago."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ocpp_billing.billing import control, review
from ocpp_billing.billing.adopt import adopt_events
from ocpp_billing.billing.balance import read_balance
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.billing.move import carry_out_move, preview_move
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.mappings.store import MappingConflictError, change_mapping
from ocpp_billing.simulators.server import Fault
from ocpp_billing.sync.clients import open_clients
from ocpp_billing.sync.models import SyncRun
from ocpp_billing.sync.run import policy_of
from tests.world import back_up_ledger, empty_ledger, restore_ledger

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
STORES = ["postgres", "postgres-1.32", "postgres-1.30", "clickhouse"]
every_store = pytest.mark.parametrize("store", STORES)


def errors_of(run):
    return {error["step"]: error["error"] for error in run.errors}


def session_of(steve_id):
    return ChargingSession.objects.get(steve_id=steve_id, superseded_at=None)


def adopt(world):
    """What ``ocpp-billing adopt`` does after a synchronization."""
    with open_clients(world.config()) as (_, lago):
        adoption = adopt_events(world.config(), lago, by="test", say=lambda _: None)
    assert control.resume_after_adopting(world.config(), by="test").mode != "paused"
    return adoption


# -- 1 to 4: Lago does not answer as it should ------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "store"),
    [
        # A wait for an answer is the same on all of them, and long.
        pytest.param(trouble, store, marks=[pytest.mark.long] if is_slow else [])
        for trouble in ("500", "503", "429", "html", "timeout", "down")
        for store in STORES
        for is_slow in (trouble == "timeout" and store != STORES[0],)
    ],
)
def test_row_01_lago_fails_for_several_runs_and_recovers(live, trouble):
    faults = {
        "500": Fault("status", path="/events", times=-1, status=500),
        "503": Fault("status", times=-1, status=503),
        "429": Fault("status", times=-1, status=429, headers={"x-ratelimit-reset": "30"}),
        "html": Fault("html", times=-1, status=502),
        "timeout": Fault("hang", method="POST", path="/events", times=-1, seconds=1.3),
        "down": Fault("drop_before", times=-1),
    }
    live.settings["LAGO_READ_TIMEOUT_SECONDS"] = "1"
    first = live.session("TAG-ALICE", energy_wh=1_000)
    live.pause()
    live.sync()
    live.resume()
    live.lago.add_fault(faults[trouble])
    for _ in range(1 if trouble == "timeout" else 3):
        run = live.sync()
        assert run.status in {"failed", "partial"}
        assert live.state_of(first) == ("queued", None)
        live.clock.advance(minutes=15)
    second = live.session("TAG-BOB", energy_wh=200)
    live.lago.faults.clear()
    live.clock.advance(HOUR)
    live.sync()
    assert live.state_of(first) == live.state_of(second) == ("confirmed", None)
    assert live.lago_wh_by_session() == {first: 1_000, second: 200}
    live.assert_conserved()


@every_store
@pytest.mark.parametrize(
    ("effect", "phase"),
    [
        ("http lago POST /events/batch", "before"),
        ("http lago POST /events/batch", "after"),
        ("db commit deliver", "before"),
        ("db commit deliver", "after"),
        ("db commit confirm", "before"),
    ],
)
def test_row_02_the_process_dies_around_the_post_and_the_next_one_completes_it_once(live, effect, phase):
    sessions = [live.session("TAG-ALICE", f"CP-{number}", energy_wh=1_000) for number in range(3)]
    live.crash_at(effect, phase)
    assert SyncRun.objects.filter(status="running").count() == 1
    live.clock.advance(minutes=1)
    run = live.sync()
    if live.lago.store != "postgres":
        # The dead process may have sent it until its lease ends, and Lago may show that later.
        live.clock.advance(minutes=20)
        run = live.sync()
    assert run.status == "completed"
    assert SyncRun.objects.filter(status="interrupted").count() == 1
    assert live.lago_wh_by_session() == dict.fromkeys(sessions, 1_000)
    assert {live.state_of(number) for number in sessions} == {("confirmed", None)}
    live.assert_conserved()


@every_store
@pytest.mark.parametrize(
    "fault", [Fault("html", status=504, after=True), Fault("drop_after")], ids=["504", "reset"]
)
def test_row_03_lago_took_the_batch_and_the_answer_is_lost_while_new_sessions_come(live, fault):
    old = [live.session("TAG-ALICE", f"CP-{number}", energy_wh=1_000) for number in range(3)]
    live.lago.add_fault(Fault(fault.kind, path="/events/batch", status=fault.status, after=fault.after))
    live.crash_at("db commit deliver", "after")  # this run does not come to read it back
    new = [live.session("TAG-BOB", f"CP-{number}", energy_wh=200) for number in range(2)]
    live.clock.advance(HOUR)
    run = live.sync()
    assert run.status == "completed"
    assert live.lago_wh_by_session() == {**dict.fromkeys(old, 1_000), **dict.fromkeys(new, 200)}
    assert live.balance().states["confirmed"].sessions == 5
    live.assert_conserved()


@every_store
@pytest.mark.parametrize("known", [1, 3])
def test_row_04_a_batch_of_duplicates_and_new_events_bills_each_once(live, known):
    """Lago took some before, and says so only when they come again: it had not shown them when asked."""
    old = [live.session("TAG-ALICE", f"CP-{number}", energy_wh=1_000) for number in range(known)]
    live.lago.add_fault(Fault("drop_after", path="/events/batch"))
    live.crash_at("db commit deliver", "after")
    new = [live.session("TAG-BOB", f"CP-{number}", energy_wh=200) for number in range(4)]
    not_found = {"status": 404, "error": "Not Found", "code": "event_not_found"}
    live.lago.add_fault(
        Fault("status", method="GET", path="/events/steve", times=known, status=404, body=not_found)
    )
    live.clock.advance(HOUR)
    live.sync()
    live.sync()
    assert live.lago_wh_by_session() == {**dict.fromkeys(old, 1_000), **dict.fromkeys(new, 200)}
    assert live.balance().states["confirmed"].sessions == known + 4
    live.assert_conserved()


# -- 9: what Lago does not know yet, or not any more ------------------------------------------------------


@pytest.mark.parametrize("path", ["/subscriptions", "/plans", "/billable_metrics"])
@pytest.mark.parametrize("status", [429, 500])
def test_row_09_a_lookup_that_fails_once_makes_nothing_final(live, path, status):
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.lago.add_fault(Fault("status", method="GET", path=path, status=status))
    live.sync()
    assert live.state_of(session)[0] in {"held", "queued", "confirmed"}
    assert live.state_of(session)[1] in {"undecided", None}
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh_by_session() == {session: 1_000}
    live.assert_conserved()


def test_row_09_a_customer_who_gets_a_subscription_later_is_billed_then(world):
    world.plan()
    world.map("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("TAG-ALICE", energy_wh=1_000)
    for _ in range(3):
        world.sync()
        assert world.state_of(session) == ("held", "no_subscription")
        world.clock.advance(DAY)
    world.customer("alice")
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert world.lago_wh_by_session() == {session: 1_000}
    world.assert_conserved()


def test_row_09_a_subscription_that_ended_holds_what_came_after_until_there_is_another(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.lago.terminate("sub-alice")
    world.clock.advance(3 * HOUR)
    session = world.session("TAG-ALICE", start=2 * HOUR, stop=HOUR, energy_wh=1_000)
    world.sync()
    assert world.state_of(session) == ("held", "no_subscription")
    assert world.posts() == []
    world.customer("alice", "sub-alice-2", since=world.at(2 * HOUR))
    world.clock.advance(HOUR)
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert world.lago_wh("sub-alice-2") == 1_000
    world.assert_conserved()


# -- 12: many sessions in one run -------------------------------------------------------------------------


def bill_many(world, count):
    world.customer("fleet")
    for number in range(1, 11):
        world.map(f"GEN-{number:04d}", "fleet")
    world.go_live(world.clock.now() - 20 * DAY)
    made = world.steve.generate(count, days=18, tag_count=10, open_count=1)
    run = world.sync(delivery_concurrency=2)
    assert (run.status, run.counts["discovered"], run.counts["held"]) == ("completed", count, 0)
    assert world.lago_wh() == made.delivered_wh
    states = world.balance().states
    assert states["confirmed"].energy_wh == made.delivered_wh
    assert states["confirmed"].sessions + states["excluded"].sessions == made.stopped
    run = world.sync()
    assert run.counts["accepted"] == 0
    world.assert_conserved()


@pytest.mark.parametrize("count", [pytest.param(7_281, marks=pytest.mark.long), 7_282])
def test_row_12_so_many_sessions_in_one_run_are_all_billed_once(world, count):
    bill_many(world, count)


@pytest.mark.long
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("count", [65_535, 100_000, 1_000_000])
def test_row_12_up_to_a_million_sessions_in_one_run_are_all_billed_once(world, count):
    world.lago.keep_requests = world.steve.keep_requests = False
    bill_many(world, count)


# -- 21: what Lago would answer 200 to and never bill -----------------------------------------------------


def test_row_21_an_unknown_subscription_is_held_and_not_sent(world):
    world.customer("alice")
    world.map("TAG-ALICE", "alice", subscription="sub-typo")
    world.go_live()
    session = world.session("TAG-ALICE")
    world.sync()
    assert world.state_of(session) == ("held", "no_subscription")
    assert world.posts() == []
    world.assert_conserved()


def test_row_21_an_unknown_metric_is_held_and_not_sent(live):
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.sync(lago_metric_code="ev_charging_kWh")
    assert live.state_of(session) == ("held", "metric_not_charged")
    assert live.posts() == []
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh_by_session() == {session: 1_000}
    live.assert_conserved()


@every_store
def test_row_21_the_amount_goes_under_the_name_that_the_metric_sums(world):
    world.lago.create_metric("ev_charging_kwh", "energy_delivered")
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("TAG-ALICE", energy_wh=1_234)
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    (entry,) = world.lago.ledger()
    assert entry["properties"]["energy_delivered"] == "1.234"
    assert "kwh" not in entry["properties"]
    assert world.lago_wh_by_session() == {session: 1_234}
    world.assert_conserved()


def test_row_21_a_time_outside_the_subscription_is_held_and_not_sent(world):
    world.plan()
    world.customer("alice", since=world.clock.now() - HOUR)
    world.map("TAG-ALICE", "alice")
    world.go_live()
    before = world.session("TAG-ALICE", start=3 * HOUR, stop=2 * HOUR)
    within = world.session("TAG-ALICE", start=3 * HOUR, stop=HOUR / 2, box="CP-2", energy_wh=1_000)
    world.sync()
    assert world.state_of(before) == ("held", "no_subscription")
    assert world.lago_wh_by_session() == {within: 1_000}
    world.assert_conserved()


@every_store
def test_row_21_a_plan_that_lost_its_charge_after_the_decision_holds_what_was_queued(live):
    live.pause()
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    assert live.state_of(session) == ("queued", None)
    plan = live.lago.books.catalogue.plans["ev_payg"]
    charges, plan.charges = plan.charges, type(plan.charges)()
    live.resume()
    live.clock.advance(HOUR)
    live.sync()
    assert live.state_of(session) == ("held", "metric_not_charged")
    assert live.posts() == []
    plan.charges = charges
    live.clock.advance(HOUR)
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh_by_session() == {session: 1_000}
    live.assert_conserved()


# -- 22: mapped anew between two attempts -----------------------------------------------------------------


@every_store
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_row_22_what_lago_may_know_stays_with_whom_it_was_sent_to_when_the_tag_is_mapped_anew(live, stored):
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.lago.add_fault(Fault("drop_after" if stored else "drop_before", path="/events/batch"))
    live.crash_at("db commit deliver", "after")
    mapping = TagMapping.objects.get(customer_external_id="alice")
    with pytest.raises(MappingConflictError, match="cannot be taken back"):
        change_mapping(mapping.pk, at=mapping.valid_from, customer="bob", subscription=None, by="test")
    change_mapping(mapping.pk, at=live.at(3 * HOUR), customer="bob", subscription=None, by="test")
    live.clock.advance(HOUR)
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (1_000, 0)
    assert len(live.lago.ledger()) == 1
    live.assert_conserved()


@every_store
def test_row_22_what_was_never_sent_goes_to_the_new_payer_alone(live):
    live.pause()
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    mapping = TagMapping.objects.get(customer_external_id="alice")
    change_mapping(mapping.pk, at=live.at(3 * HOUR), customer="bob", subscription=None, by="test")
    live.resume()
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (0, 1_000)
    assert len(live.lago.ledger()) == 1
    live.assert_conserved()


# -- 34: queued on the last day, Lago down over the end of the period --------------------------------------


@pytest.fixture
def last_day(world):
    """The evening of 31 March."""
    world.clock.set(datetime(2026, 3, 31, 22, tzinfo=UTC))
    world.begins_at = datetime(2026, 1, 1, tzinfo=UTC)
    world.payer("TAG-ALICE", "alice", billing_time="calendar")
    world.go_live()
    return world


def back_in_april(world, policy):
    """Lago comes back on the first of April; three runs follow."""
    world.clock.set(datetime(2026, 4, 1, 9, tzinfo=UTC))
    world.lago.faults.clear()
    world.lago.run_billing()
    for _ in range(3):
        world.sync(late_policy=policy)
        world.clock.advance(minutes=15)


@pytest.mark.parametrize(
    ("store", "down", "policy"),
    [
        # Every store meets every trouble and both policies, every trouble meets both policies.
        pytest.param(store, down, policy, marks=[pytest.mark.long] if (n + m + k) % 2 else [])
        for n, store in enumerate(STORES)
        for m, down in enumerate(["altogether", "503", "lost", "paused"])
        for k, policy in enumerate(["hold", "current_period"])
    ],
)
def test_row_34_what_was_queued_over_the_end_of_the_period_is_held_or_billed_now(last_day, policy, down):
    world = last_day
    session = world.session("TAG-ALICE", energy_wh=5_000)
    faults = {
        "altogether": Fault("drop_before", times=-1),
        "503": Fault("status", path="/events/batch", times=-1, status=503),
        "lost": Fault("drop_before", path="/events/batch", times=-1),
    }
    if down == "paused":
        world.pause()
    else:
        world.lago.add_fault(faults[down])
    world.sync()
    if down == "paused":
        world.resume()
    attempted = UsageEvent.objects.filter(attempts__gt=0).exists()
    assert attempted == (down in {"503", "lost"})
    back_in_april(world, policy)
    if policy == "hold":
        assert world.state_of(session) == ("held", "late_period")
        assert world.lago_wh_by_session() == {}
        review.accept(session_of(session).pk, note="bill it in April", by="test")
        world.sync()
    assert world.state_of(session) == ("confirmed", None)
    (entry,) = world.lago.ledger()
    assert entry["state"] == "open"
    assert entry["timestamp"].startswith("2026-04-01T")
    assert entry["properties"]["stopped_at"].startswith("2026-03-31T")
    assert world.lago_wh_by_session() == {session: 5_000}
    world.assert_conserved()


@every_store
@pytest.mark.parametrize("policy", ["hold", "current_period"])
def test_row_34_what_lago_took_before_the_end_without_saying_so_is_on_the_old_invoice_once(last_day, policy):
    world = last_day
    session = world.session("TAG-ALICE", energy_wh=5_000)
    world.lago.add_fault(Fault("drop_after", path="/events/batch"))
    world.lago.add_fault(Fault("status", times=-1, status=503, method="GET", path="/events/steve"))
    world.sync()
    assert world.state_of(session) == ("queued", None)
    back_in_april(world, policy)
    assert world.state_of(session) == ("confirmed", None)
    (entry,) = world.lago.ledger()
    assert entry["state"] == "invoiced"
    assert world.lago_wh_by_session() == {session: 5_000}
    world.assert_conserved()


# -- 35: what Lago would not pay back ---------------------------------------------------------------------


def revised(world, from_wh, to_wh, *, start_wh=1_000):
    """A session that was billed, and whose stop is then told again; 3.9 takes the last word."""
    session = world.session("TAG-ALICE", start_wh=start_wh, stop_wh=start_wh + from_wh)
    world.sync()
    assert world.lago_wh_by_session()[session] == from_wh
    world.clock.advance(minutes=5)
    assert world.stop(session, at=HOUR, meter_wh=start_wh + to_wh) is None
    return session


@every_store
@pytest.mark.parametrize("release", ["3.9.0"])
def test_row_35_a_correction_downwards_that_lago_honours_is_sent(live):
    session = revised(live, 5_000, 3_000)
    live.sync()
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh("sub-alice") == 3_000
    assert live.lago_wh_by_session() == {session: 3_000}
    live.assert_conserved()


@pytest.mark.parametrize("release", ["3.9.0"])
@pytest.mark.parametrize("left_wh", [0, 50])
def test_row_35_a_billed_session_that_turns_out_to_be_hardly_one_is_corrected_not_left_out(live, left_wh):
    session = revised(live, 5_000, left_wh)
    live.sync(min_session_kwh="0.1")
    live.sync(min_session_kwh="0.1")
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh("sub-alice") == left_wh
    live.assert_conserved()


@every_store
@pytest.mark.parametrize("release", ["3.9.0"])
def test_row_35_a_correction_that_would_make_the_total_negative_is_held_with_its_amount(live):
    session = revised(live, 5_000, 3_000)
    live.others_send("sub-alice", "-4.000")
    live.sync()
    assert live.state_of(session) == ("held", "refund_by_credit_note")
    assert session_of(session).rest_wh == -2_000
    assert "-2.000 kWh" in live.words_about(session)
    assert live.lago_wh_by_session() == {session: 5_000}
    live.assert_conserved()

    # The credit note is written and the difference settled with a note: what is left is the billed event.
    review.exclude(session_of(session).pk, note="credit note CN-7", by="test")
    live.sync()
    settled = session_of(session)
    assert (settled.rest_state, settled.rest_reason, settled.rest_wh) == ("excluded", "by_operator", -2_000)
    assert live.state_of(session)[0] in {"accepted", "confirmed"}
    assert not read_balance("main").unexplained
    live.assert_conserved()


@every_store
@pytest.mark.parametrize("release", ["3.9.0"])
def test_row_35_a_correction_downwards_of_a_charge_paid_in_advance_is_held_with_its_amount(world):
    world.plan("ev_advance", pay_in_advance_charge=True)
    world.payer("TAG-ALICE", "alice", plan="ev_advance")
    world.go_live()
    session = revised(world, 5_000, 3_000)
    world.sync()
    world.sync()
    assert world.state_of(session) == ("held", "refund_by_credit_note")
    assert session_of(session).rest_wh == -2_000
    assert world.lago_wh_by_session() == {session: 5_000}
    assert UsageEvent.objects.count() == 1
    world.assert_conserved()


@every_store
@pytest.mark.parametrize("release", ["3.9.0"])
@pytest.mark.parametrize("policy", ["hold", "current_period"])
def test_row_35_a_correction_downwards_after_the_invoice_is_held_with_its_amount(last_day, policy):
    world = last_day
    session = revised(world, 5_000, 3_000)
    world.clock.set(datetime(2026, 4, 1, 9, tzinfo=UTC))
    world.lago.run_billing()
    world.sync(late_policy=policy)
    assert world.state_of(session) == ("held", "refund_by_credit_note")
    assert session_of(session).rest_wh == -2_000
    assert world.lago_wh_by_session() == {session: 5_000}
    world.assert_conserved()


@every_store
@pytest.mark.parametrize("release", ["3.9.0"])
def test_row_35_a_correction_upwards_after_the_invoice_is_billed_now(last_day):
    world = last_day
    session = revised(world, 3_000, 5_000)
    world.clock.set(datetime(2026, 4, 1, 9, tzinfo=UTC))
    world.lago.run_billing()
    world.sync()
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert [entry["state"] for entry in world.lago.ledger()] == ["invoiced", "open"]
    assert world.lago_wh_by_session() == {session: 5_000}
    world.assert_conserved()


@every_store
@pytest.mark.parametrize("release", ["3.9.0"])
def test_row_35_a_correction_above_the_limit_waits_for_approval(live):
    session = revised(live, 5_000, 65_000)
    live.sync()
    assert live.state_of(session) == ("held", "changed_after_billing")
    assert session_of(session).rest_wh == 60_000
    review.accept(session_of(session).pk, note="a long session", by="test")
    live.sync()
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh_by_session() == {session: 65_000}
    live.assert_conserved()


def move(world, steve_id, customer):
    config = world.config()
    with open_clients(config) as (_, lago):
        directory = LagoDirectory(lago, config.lago_metric_code)
        policy = policy_of(config)
        (planned,) = preview_move(
            [session_of(steve_id).pk],
            customer=customer,
            subscription=None,
            policy=policy,
            directory=directory,
        )
        carry_out_move(planned, policy=policy, directory=directory, note="wrong driver", by="test")
    return planned


@every_store
def test_row_35_a_move_within_the_period_takes_back_what_it_bills_elsewhere(live):
    session = live.session("TAG-ALICE", energy_wh=5_000)
    live.sync()
    assert move(live, session, "bob").refund_by_hand == frozenset()
    live.sync()
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (0, 5_000)
    live.assert_conserved()


def test_row_35_of_two_moves_that_wait_in_the_queue_the_second_knows_of_the_first(live):
    sessions = [live.session("TAG-ALICE", energy_wh=energy_wh) for energy_wh in (5_000, 3_000)]
    live.sync()
    live.others_send("sub-alice", "-2.000")  # somebody else took 2 kWh back: 6 kWh are counted
    live.pause()
    assert move(live, sessions[0], "bob").refund_by_hand == frozenset()
    assert move(live, sessions[1], "bob").refund_by_hand == {"sub-alice"}
    live.resume()
    live.sync()
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (1_000, 8_000)
    assert live.state_of(sessions[1]) == ("held", "refund_by_credit_note")


@every_store
@pytest.mark.parametrize("why", ["after the invoice", "paid in advance"])
def test_row_35_a_move_that_lago_would_not_pay_back_is_held_with_its_amount(last_day, why):
    world = last_day
    world.plan("ev_advance", pay_in_advance_charge=True)
    if why == "paid in advance":
        world.payer("TAG-CAROL", "carol", plan="ev_advance", billing_time="calendar")
    payer, tag = ("alice", "TAG-ALICE") if why == "after the invoice" else ("carol", "TAG-CAROL")
    world.customer("bob", billing_time="calendar")
    session = world.session(tag, energy_wh=5_000)
    world.sync()
    if why == "after the invoice":
        world.clock.set(datetime(2026, 4, 1, 9, tzinfo=UTC))
        world.lago.run_billing()
        world.sync()
    assert move(world, session, "bob").refund_by_hand == {f"sub-{payer}"}
    world.clock.advance(HOUR)
    world.sync()
    world.sync()
    assert world.state_of(session) == ("held", "refund_by_credit_note")
    held = UsageEvent.objects.get(state="held")
    assert (held.energy_wh, held.reason) == (-5_000, "refund_by_credit_note")
    assert (world.lago_wh(f"sub-{payer}"), world.lago_wh("sub-bob")) == (5_000, 5_000)
    world.assert_conserved()


# -- 36: is it the right counterpart? ---------------------------------------------------------------------


@every_store
def test_row_36_the_key_of_another_organisation_stops_delivery_and_says_so(live):
    live.sync()
    ours, live.lago.organization_id = live.lago.organization_id, "1a901a90-0000-4000-8000-00000000beef"
    session = live.session("TAG-ALICE", energy_wh=1_000)
    run = live.sync()
    assert (run.status, run.delivery) == ("failed", "paused")
    assert "belongs to the organisation" in errors_of(run)["deliver"]
    assert live.posts() == []
    live.lago.organization_id = ours
    live.sync()
    assert live.posts() == []  # a person resumes
    live.resume()
    live.sync()
    assert live.lago_wh_by_session() == {session: 1_000}
    live.assert_conserved()


@pytest.mark.parametrize("release", ["3.7.1", "3.9.0", "3.11", "3.14.1"])
def test_row_36_the_address_of_another_steve_stops_delivery_and_says_so(live):
    ours = live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    live.steve.snapshot("ours")
    live.steve.reset()  # what answers at the address now is another server's database
    for number in range(3):
        live.session("TAG-BOB", f"CP-STAGING-{number}", energy_wh=9_000)
    run = live.sync()
    assert (run.status, run.delivery) == ("failed", "paused")
    assert "answers as another StEvE" in errors_of(run)["discover"]
    assert live.lago_wh_by_session() == {ours: 1_000}
    live.steve.restore("ours")
    live.resume()
    new = live.session("TAG-ALICE", "CP-1", energy_wh=200)
    live.sync()
    assert live.lago_wh_by_session() == {ours: 1_000, new: 200}
    live.assert_conserved()


@every_store
def test_row_36_an_empty_database_behind_a_known_source_stops_delivery_until_lago_was_read_back(live):
    old = live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    empty_ledger()
    live.map("TAG-ALICE", "alice")
    live.map("TAG-BOB", "bob")
    live.go_live()
    new = live.session("TAG-BOB", "CP-2", energy_wh=200)
    run = live.sync()
    assert (run.status, run.delivery) == ("failed", "paused")
    assert "ocpp-billing adopt" in errors_of(run)["deliver"]
    assert live.lago_wh_by_session() == {old: 1_000}
    adoption = adopt(live)
    assert (adoption.seen, adoption.adopted, adoption.orphans) == (1, 1, [])
    live.sync()
    live.sync()
    assert live.state_of(old) == live.state_of(new) == ("confirmed", None)
    assert live.lago_wh_by_session() == {old: 1_000, new: 200}
    live.assert_conserved()


# -- 38: our own database came back from a backup ---------------------------------------------------------


@every_store
@pytest.mark.parametrize("release", ["3.9.0", "3.14.1"])
def test_row_38_after_a_restore_of_our_database_adopt_brings_back_what_lago_holds(live, release):
    kept = live.session("TAG-ALICE", "CP-1", energy_wh=1_000)
    revised_later = live.start("TAG-ALICE", "CP-2", at=3 * HOUR, meter_wh=1_000)
    if release == "3.9.0":
        live.stop(revised_later, "CP-2", at=HOUR, meter_wh=3_000)
    running = live.start("TAG-BOB", "CP-3", at=HOUR)
    live.sync()
    live.pause()
    queued = live.session("TAG-BOB", "CP-4", energy_wh=300)
    live.sync()
    live.resume()
    yesterday = live.clock.now()
    backup = back_up_ledger()

    live.clock.advance(12 * HOUR)
    live.stop(running, "CP-3", at=HOUR, meter_wh=5_000)
    billed_since = [live.session("TAG-ALICE", "CP-1", energy_wh=70) for _ in range(3)]
    live.stop(revised_later, "CP-2", at=yesterday, meter_wh=3_500)
    live.map("TAG-CAROL", "bob")  # a mapping that the backup does not have
    carols = live.session("TAG-CAROL", "CP-5", energy_wh=40)
    live.sync()
    live.sync()
    billed = live.lago_wh_by_session()
    assert billed[revised_later] == 2_500
    assert billed == {
        kept: 1_000,
        revised_later: 2_500,
        running: 4_000,
        queued: 300,
        **dict.fromkeys(billed_since, 70),
        carols: 40,
    }
    events = live.lago_events()

    restore_ledger(backup)
    live.clock.advance(12 * HOUR)
    new = live.session("TAG-ALICE", "CP-1", energy_wh=8)
    run = live.sync()
    assert (run.status, run.delivery) == ("failed", "paused")
    assert "ocpp-billing adopt" in errors_of(run)["deliver"]
    assert live.lago_events() == events
    adoption = adopt(live)
    assert (adoption.seen, adoption.conflicts, adoption.orphans) == (len(events), [], [])
    for _ in range(3):
        live.sync()
    assert live.lago_wh_by_session() == {**billed, new: 8}
    assert live.state_of(carols) == ("confirmed", None)
    assert live.balance().states["held"].sessions == 0
    live.assert_conserved()


@every_store
def test_row_38_adopting_twice_or_in_two_halves_is_as_good_as_once(live):
    backup = back_up_ledger()
    sessions = [live.session("TAG-ALICE", f"CP-{number}", energy_wh=1_000) for number in range(5)]
    live.sync()
    restore_ledger(backup)
    live.sync()
    for _ in range(2):
        adopt(live)
    live.sync()
    assert live.lago_wh_by_session() == dict.fromkeys(sessions, 1_000)
    assert {live.state_of(number) for number in sessions} == {("confirmed", None)}
    live.assert_conserved()


@every_store
def test_row_38_an_event_whose_session_steve_lost_meanwhile_is_named_and_nothing_is_doubled(live):
    backup = back_up_ledger()
    kept = live.session("TAG-ALICE", energy_wh=1_000)
    lost = live.session("TAG-BOB", "CP-2", energy_wh=200)
    live.sync()
    live.steve.delete_tag("TAG-BOB")
    restore_ledger(backup)
    live.sync()
    adoption = adopt(live)
    assert (adoption.seen, adoption.adopted) == (2, 1)
    assert [name.split(":")[2].split("-")[0] for name in adoption.orphans] == [str(lost)]
    live.sync()
    assert live.lago_wh_by_session() == {kept: 1_000, lost: 200}
    assert live.state_of(kept) == ("confirmed", None)
