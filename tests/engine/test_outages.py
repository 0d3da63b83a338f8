"""One system is down or refuses us: the other is still served, and nothing is lost or doubled."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ocpp_billing.alerts.conditions import conditions
from ocpp_billing.billing.deliver import ILL
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.billing.review import retry_rejected
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.doctor.ours import look_at_worker
from ocpp_billing.effects import install_hook
from ocpp_billing.simulators.lago_formats import internal_error
from ocpp_billing.simulators.server import Fault
from ocpp_billing.sync.clients import open_clients
from ocpp_billing.sync.journal import RunJournal, begin_run
from ocpp_billing.sync.lanes import Dues, take_up
from ocpp_billing.sync.liveness import worker_alive
from tests.world import Crash

HOUR = timedelta(hours=1)
NAMES_THE_FIRST = {
    "status": 422,
    "error": "Unprocessable Entity",
    "code": "validation_errors",
    "error_details": {"0": "expression_evaluation_failed: it cannot be"},
}
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture
def live(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    return world


def errors_of(run):
    return {error["step"]: error["error"] for error in run.errors}


def test_while_lago_is_down_sessions_are_read_and_what_was_decided_goes_out_once_when_it_is_back(live):
    live.pause()
    decided = live.session("TAG-ALICE", energy_wh=6_000)
    live.sync()
    live.resume()
    read = live.session("TAG-ALICE", energy_wh=500)
    run = live.sync(lago_api_url=NOBODY)
    assert run.status == "failed"
    assert "discover" not in errors_of(run)
    assert "Check LAGO_API_URL" in errors_of(run)["deliver"]
    assert run.counts["discovered"] == 1
    assert live.state_of(decided) == ("queued", None)
    assert live.state_of(read) == ("held", "undecided")
    live.sync()
    live.sync()
    assert live.state_of(decided) == live.state_of(read) == ("confirmed", None)
    assert (len(live.posts()), live.lago_wh()) == (1, 6_500)
    live.assert_conserved()


def test_what_was_never_decided_because_lago_was_down_is_decided_when_it_is_back(live):
    session = live.session("TAG-ALICE", energy_wh=6_000)
    run = live.sync(lago_api_url=NOBODY)
    assert run.status == "failed"
    assert live.state_of(session) == ("held", "undecided")
    assert live.balance().unexplained.energy_wh == 0
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh() == 6_000
    live.assert_conserved()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", path="/events/batch", status=503),
        Fault("status", path="/events/batch", status=502, after=True),
        Fault("html", path="/events/batch", status=504, after=True),
        Fault("drop_before", path="/events/batch"),
        Fault("drop_after", path="/events/batch"),
        Fault("truncate", path="/events/batch"),
        Fault("garbage", path="/events/batch"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}{'-stored' if fault.after else ''}",
)
@pytest.mark.parametrize("store", ["postgres", "postgres-1.32", "postgres-1.30", "clickhouse-plain"])
def test_an_answer_that_says_nothing_is_settled_without_doubling(live, fault):
    live.lago.add_fault(Fault(**{name: getattr(fault, name) for name in ("kind", "path", "status", "after")}))
    for number in range(3):
        live.session("TAG-ALICE", f"CP-{number}", energy_wh=1_000)
    live.sync()
    if live.lago.store != "postgres":
        # It may take an event twice, for all that is known: what it may yet show is not sent again before.
        live.clock.advance(minutes=9)
    live.sync()
    assert live.balance().states["confirmed"].sessions == 3
    assert live.lago_wh() == 3_000
    live.assert_conserved()


@pytest.mark.parametrize("store", ["clickhouse-plain"])
def test_a_lago_that_bills_repeats_gets_nothing_again_before_it_would_show_it(live):
    live.lago.delay_visibility(8 * 60)
    live.lago.add_fault(Fault("drop_after", path="/events/batch"))
    session = live.session("TAG-ALICE", energy_wh=1_000)
    for _ in range(8):
        live.sync()
        assert live.state_of(session) == ("queued", None)
    assert UsageEvent.objects.get().answer["outcome"] == "not shown yet"
    live.clock.advance(minutes=2)
    live.sync()
    assert len(live.posts()) == 1
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh() == 1_000


@pytest.mark.parametrize("store", ["clickhouse-plain"])
def test_a_lago_that_bills_repeats_gets_again_what_it_never_got(live):
    live.lago.add_fault(Fault("drop_before", path="/events/batch"))
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    live.clock.advance(minutes=8)
    live.sync()
    assert len(live.posts()) == 1
    live.clock.advance(minutes=1)
    live.sync()
    assert len(live.posts()) == 2
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh() == 1_000


@pytest.mark.parametrize("store", ["clickhouse-plain"])
def test_what_lago_refused_for_sure_is_sent_again_at_once(live):
    live.lago.limit_rate(1, reset_s=7, path="/events/batch")
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    assert live.state_of(session) == ("confirmed", None)


def cannot_digest(world, steve_id):
    """Let this Lago meet an error of its own with every batch that holds an event of the session."""
    events = world.lago.books.events
    add_batch = type(events).add_batch

    def add_others(given, now_us):
        if any(f":{steve_id}-" in item["transaction_id"] for item in given):
            raise internal_error()
        return add_batch(events, given, now_us)

    events.add_batch = add_others


@pytest.mark.parametrize(
    "store",
    [
        "postgres",
        pytest.param("postgres-1.32", marks=pytest.mark.long),
        pytest.param("postgres-1.30", marks=pytest.mark.long),
        "clickhouse-plain",
    ],
)
def test_an_event_that_lago_cannot_digest_holds_back_no_other_and_is_sent_once_it_can(live):
    sessions = [live.session("TAG-ALICE", f"CP-{number}", energy_wh=1_000 + number) for number in range(5)]
    poison = sessions[2]
    cannot_digest(live, poison)
    for number in range(14):
        live.sync()
        live.clock.advance(minutes=31)
        if number > 2:
            sessions.append(live.session("TAG-ALICE", f"CP-{len(sessions)}", energy_wh=100))
    assert {live.state_of(number) for number in sessions[:-1] if number != poison} == {("confirmed", None)}
    event = UsageEvent.objects.get(session__steve_id=poison)
    assert "500" in event.answer["says"]
    assert (event.state, event.reason) == ("rejected", "lago_server_error")
    del live.lago.books.events.add_batch
    retry_rejected(event.pk, by="test", note="Lago was mended")
    live.clock.advance(HOUR)
    live.sync()
    assert live.state_of(poison) == ("confirmed", None)
    assert live.lago_wh_by_session() == {
        number: 100 if place > 4 else 1_000 + place for place, number in enumerate(sessions)
    }
    live.assert_conserved()


@pytest.mark.parametrize("fault", [Fault("status", status=500), Fault("drop_before")], ids=["500", "reset"])
@pytest.mark.parametrize("store", ["postgres", "clickhouse-plain"])
def test_a_lago_that_takes_nothing_for_hours_rejects_nothing_and_is_not_hammered(live, fault):
    live.lago.add_fault(replace(fault, path="/events/batch", times=-1))
    sessions = []
    for _ in range(10):
        sessions += [live.session("TAG-ALICE", f"CP-{len(sessions) + n}", energy_wh=1_000) for n in range(3)]
        before = len(live.posts())
        run = live.sync()
        assert len(live.posts()) - before <= ILL
        live.clock.advance(minutes=20)
    assert run.status in {"failed", "partial"}
    live.lago.clear_faults()
    for _ in range(3):
        live.sync()
        live.clock.advance(minutes=31)
    assert {live.state_of(number) for number in sessions} == {("confirmed", None)}
    assert live.lago_wh_by_session() == dict.fromkeys(sessions, 1_000)


@pytest.mark.parametrize("store", ["postgres", "clickhouse-plain"])
def test_a_lago_that_cannot_be_asked_about_some_events_gets_all_others(live):
    old = [live.session("TAG-ALICE", f"CP-{number}", energy_wh=1_000) for number in range(7)]
    asked = "|".join(f"(:|%3A){number}-" for number in old[:4])
    live.lago.add_fault(Fault("drop_before", path="/events/batch"))
    live.lago.add_fault(Fault("status", method="GET", path=f"/events/.*({asked})", status=500, times=-1))
    run = live.sync()
    assert run.status == "failed"
    assert "500" in errors_of(run)["deliver"]
    new = live.session("TAG-ALICE", "CP-9", energy_wh=1_000)
    for _ in range(3):
        live.clock.advance(minutes=11)
        live.sync()
    assert {live.state_of(number) for number in old[:4]} == {("queued", None)}
    assert {live.state_of(number) for number in [*old[4:], new]} == {("confirmed", None)}
    live.lago.clear_faults()
    for _ in range(2):
        live.clock.advance(minutes=31)
        live.sync()
    assert live.lago_wh_by_session() == dict.fromkeys([*old, new], 1_000)


@pytest.mark.parametrize("store", ["clickhouse-plain"])
def test_what_was_not_named_and_then_lost_in_a_crash_is_read_back_before_it_is_sent_again(live):
    first = live.session("TAG-ALICE", "CP-1", energy_wh=1_000)
    second = live.session("TAG-ALICE", "CP-2", energy_wh=2_000)
    live.lago.add_fault(Fault("status", path="/events/batch", status=422, body=NAMES_THE_FIRST))
    posts = []

    def die_at_the_second_post(name, phase):
        if (name, phase) == ("http lago POST /events/batch", "after"):
            posts.append(name)
            if len(posts) == 2:
                raise Crash

    install_hook(die_at_the_second_post)
    try:
        with pytest.raises(Crash):
            live.sync()
    finally:
        install_hook(None)
    live.pause()
    live.clock.advance(HOUR)
    live.resume()
    live.sync()
    live.sync()
    assert live.lago_wh_by_session() == {second: 2_000}
    assert live.state_of(first) == ("rejected", "refused_by_lago")


def test_what_is_tried_in_vain_for_a_day_is_told(live):
    live.lago.add_fault(Fault("status", path="/events/batch", status=500, times=-1))
    session = live.session("TAG-ALICE", "CP-1", energy_wh=1_000)

    def told():
        return {each.code: each for each in conditions(live.config(), live.clock.now())}.get("not_delivered")

    live.sync()
    assert told() is None
    live.clock.advance(days=1)
    live.sync()
    alert = told()
    assert "1 usage event with 1.000 kWh is tried in vain since" in alert.says
    assert "500" in alert.says
    live.pause()
    assert told() is None
    live.resume()
    live.lago.clear_faults()
    live.clock.advance(HOUR)
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert told() is None


def test_a_rate_limit_is_waited_for(live):
    live.lago.limit_rate(1, reset_s=7, path="/events/batch")
    session = live.session("TAG-ALICE")
    run = live.sync()
    assert run.status == "completed"
    assert live.state_of(session) == ("confirmed", None)
    assert run.ended_at - run.started_at >= timedelta(seconds=7)
    assert live.lago_wh() == 10_000


def test_while_steve_is_down_what_is_queued_still_goes_out(live):
    live.pause()
    session = live.session("TAG-ALICE", energy_wh=6_000)
    live.sync()
    live.resume()
    run = live.sync(steve_api_url=NOBODY)
    assert run.status == "failed"
    assert list(errors_of(run)) == ["discover"]
    assert "StEvE" in errors_of(run)["discover"]
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh() == 6_000
    live.assert_conserved()


@pytest.mark.parametrize("release", ["3.7", "3.9", "3.14"])
def test_a_wrong_key_of_steve_says_so_and_loses_nothing(live):
    session = live.session("TAG-ALICE")
    run = live.sync(steve_api_key="wrong")
    assert run.status == "failed"
    assert "STEVE_API_KEY" in errors_of(run)["discover"]
    assert not ChargingSession.objects.exists()
    live.sync()
    assert live.state_of(session) == ("confirmed", None)


def test_retries_towards_lago_do_not_hide_that_steve_is_not_read(live):
    live.pause()
    live.session("TAG-ALICE")
    read = live.sync()
    live.resume()
    live.clock.advance(HOUR)
    config = live.config(steve_api_key="wrong")
    run = begin_run(None, source="main", trigger="delivery", requested_by="", worker="test")
    with open_clients(config) as (steve, lago):
        run = take_up(config, steve, lago, RunJournal(run), Dues(config))
    assert (run.status, run.counts["accepted"]) == ("completed", 1)
    assert worker_alive("main", live.clock.now()).last_completed == read.ended_at
    (finding,) = (each for each in look_at_worker(config, live.clock.now()) if each.code == "last_run")
    assert (finding.level, "2026-03-17 12:00 UTC, and two more were due by" in finding.says) == (
        "warning",
        True,
    )


def test_a_wrong_key_of_lago_says_so_and_loses_nothing(live):
    session = live.session("TAG-ALICE", energy_wh=2_000)
    run = live.sync(lago_api_key="wrong")
    assert run.status == "failed"
    assert "Set LAGO_API_KEY" in errors_of(run)["deliver"]
    assert live.posts() == []
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh() == 2_000
    live.assert_conserved()


def test_a_key_that_may_not_write_events_pauses_delivery_until_somebody_resumes(live):
    live.lago.deny("write", "event")
    session = live.session("TAG-ALICE", energy_wh=2_000)
    run = live.sync()
    assert (run.status, run.delivery) == ("failed", "paused")
    assert "LAGO_API_KEY" in errors_of(run)["deliver"]
    live.lago.api.denied.clear()
    run = live.sync()
    assert (run.status, run.delivery) == ("completed", "paused")
    assert live.state_of(session) == ("queued", None)
    live.resume()
    live.clock.advance(HOUR)
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh() == 2_000
    live.assert_conserved()


def test_settings_that_are_missing_end_the_run_with_what_to_set(live):
    run = live.sync(steve_api_key=None, lago_api_key=None)
    assert run.status == "failed"
    said = " ".join(error["error"] for error in run.errors)
    assert "STEVE_API_KEY is not set" in said
    assert "LAGO_API_KEY is not set" in said


def test_a_run_that_broke_off_is_completed_by_the_next_one(live):
    session = live.session("TAG-ALICE", energy_wh=2_000)

    def die(name, phase):
        if (name, phase) == ("http lago POST /events/batch", "after"):
            raise Crash

    install_hook(die)
    try:
        with pytest.raises(Crash):
            live.sync()
    finally:
        install_hook(None)
    assert live.lago_wh() == 2_000  # Lago has it, we do not know
    assert live.state_of(session) == ("queued", None)
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh() == 2_000
    live.assert_conserved()
