"""One StEvE read under two STEVE_SOURCE into one ledger: each session reaches Lago by one of them only."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction

from ocpp_billing.billing import review
from ocpp_billing.billing.decide import decide_sessions
from ocpp_billing.billing.models import Ruling, UsageEvent
from ocpp_billing.billing.twins import lock_twins
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.cli import main
from ocpp_billing.effects import install_hook
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.sync.clients import open_clients
from ocpp_billing.sync.policy import policy_of
from tests.engine.threads import Threads, waits_for_a_lock

KNOWN, BILLED = ("held", "known_by_another_source"), ("held", "billed_by_another_source")
NIGHT = timedelta(days=1)


@pytest.fixture
def two(world):
    """Alice pays for her tag, and no source is live."""
    world.customer("alice")
    return world


def under(world, source):
    """Let everything that follows happen under another STEVE_SOURCE."""
    world.settings["STEVE_SOURCE"] = source


def piloted(world):
    """A session that a pilot in shadow mode would bill, and main, which is live since, knows, too."""
    under(world, "pilot")
    world.map("TAG-ALICE", "alice")
    session = world.session("TAG-ALICE", energy_wh=1_000)
    world.sync()
    assert world.state_of(session) == ("queued", None)
    under(world, "main")
    world.map("TAG-ALICE", "alice")
    world.go_live()
    world.sync()
    return session


def billed_by_the_pilot(world):
    """A session that the pilot, live since, has sent to Lago, and that main has looked at again since."""
    session = piloted(world)
    under(world, "pilot")
    world.go_live()
    world.sync()
    under(world, "main")
    world.clock.advance(NIGHT)
    world.sync()
    return session


def of(world, steve_id):
    return world._session(steve_id).get()


def accept(world, steve_id):
    review.accept(of(world, steve_id).pk, note="the pilot is over", by="test")


def parts(steve_id):
    """Source and state of the usage events that count, of a session of StEvE's."""
    events = UsageEvent.objects.filter(session__steve_id=steve_id).exclude(state="void")
    return list(events.order_by("pk").values_list("source_id", "state"))


def test_what_a_pilot_knows_is_held_with_what_became_of_it_there(two):
    session = piloted(two)
    assert two.state_of(session) == KNOWN
    says = two.words_about(session)
    assert (
        "STEVE_SOURCE pilot, which has 1.000 kWh of it ready to be sent and is not live, so it sends" in says
    )
    assert two.lago_events() == {}


def test_accepted_it_is_taken_over_and_never_billed_by_the_pilot_again(two):
    session = piloted(two)
    accept(two, session)
    two.sync()
    assert two.state_of(session) == ("confirmed", None)
    assert parts(session) == [("main", "confirmed")]
    under(two, "pilot")
    assert two.state_of(session) == ("held", "undecided")
    two.go_live()
    two.sync()
    assert two.state_of(session) == BILLED
    assert "STEVE_SOURCE main, which billed 1.000 kWh of it in Lago (confirmed)" in two.words_about(session)
    assert two.lago_wh_by_session() == {session: 1_000}
    assert two.balance().unexplained.sessions == 0


def test_a_pilot_that_was_live_has_billed_it(two):
    under(two, "pilot")
    two.map("TAG-ALICE", "alice")
    two.go_live()
    session = two.session("TAG-ALICE", energy_wh=1_000)
    two.sync()
    under(two, "main")
    two.map("TAG-ALICE", "alice")
    two.go_live()
    two.sync()
    assert two.state_of(session) == BILLED
    accept_under_main = of(two, session)
    review.exclude(accept_under_main.pk, note="the pilot billed it", by="test")
    two.sync()
    assert two.state_of(session) == ("excluded", "by_operator")
    assert two.lago_wh_by_session() == {session: 1_000}


def test_what_stopped_before_going_live_is_no_question(two):
    under(two, "pilot")
    two.map("TAG-ALICE", "alice")
    session = two.session("TAG-ALICE", energy_wh=1_000)
    two.sync()
    under(two, "main")
    two.map("TAG-ALICE", "alice")
    two.go_live(two.clock.now())
    two.sync()
    assert two.state_of(session) == ("excluded", "before_go_live")
    under(two, "pilot")
    two.go_live()
    two.sync()
    assert two.state_of(session) == ("confirmed", None)


def test_what_was_before_going_live_there_is_said(two):
    under(two, "pilot")
    two.map("TAG-ALICE", "alice")
    session = two.session("TAG-ALICE", energy_wh=1_000)
    two.go_live(two.clock.now())
    two.sync()
    under(two, "main")
    two.map("TAG-ALICE", "alice")
    two.go_live()
    two.sync()
    assert two.state_of(session) == KNOWN
    assert "does not bill it: it stopped before billing began there" in two.words_about(session)


def test_sent_there_after_the_person_looked_it_is_not_billed_here(two):
    """The acceptance was of a session that the pilot had not sent."""
    session = piloted(two)
    accept(two, session)
    under(two, "pilot")
    two.go_live()
    two.sync()
    under(two, "main")
    two.sync()
    assert two.state_of(session) == BILLED
    assert parts(session) == [("pilot", "confirmed")]


def test_billed_a_second_time_only_by_a_person_who_says_so(two):
    session = billed_by_the_pilot(two)
    assert two.state_of(session) == BILLED
    accept(two, session)
    two.sync()
    assert two.state_of(session) == ("confirmed", None)
    assert parts(session) == [("pilot", "confirmed"), ("main", "confirmed")]
    two.show_as(session, stopValue="3000")  # each corrects its own
    two.clock.advance(NIGHT)
    two.sync()
    assert two.lago_wh_by_session() == {session: 1_000 + 2_000}
    assert two.state_of(session) == ("confirmed", None)


def test_accepted_by_both_the_last_word_counts(two):
    """Neither takes it from the other for ever."""
    session = piloted(two)
    two.pause()
    accept(two, session)
    two.sync()
    assert parts(session) == [("main", "queued")]
    under(two, "pilot")
    two.sync()
    assert two.state_of(session) == KNOWN
    assert "is paused, so it sends nothing for now" in two.words_about(session)
    accept(two, session)
    two.sync()
    assert parts(session) == [("pilot", "queued")]
    under(two, "main")
    two.sync()
    assert two.state_of(session) == KNOWN
    assert Ruling.objects.filter(revoked_at=None).count() == 1
    two.resume()
    under(two, "pilot")
    two.go_live()
    two.sync()
    assert parts(session) == [("pilot", "confirmed")]
    assert two.lago_wh_by_session() == {session: 1_000}


# -- the whole history of a pilot at once -------------------------------------------------------------------


@pytest.fixture
def here(two, monkeypatch, capsys):
    """Run a command in this process: (exit code, standard output and error)."""

    def run(*arguments):
        for name, value in two.environment().items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()  # what the runs before have logged is not the command's
        code = main(arguments)
        output = capsys.readouterr()
        return code, output.out + output.err

    return run


def test_the_command_line_settles_all_of_it(two, here):
    first = piloted(two)
    second = two.session("TAG-ALICE", energy_wh=500)
    under(two, "pilot")
    two.sync()
    under(two, "main")
    two.sync()
    assert "known_by_another_source (Known to another source): 2 sessions, 1.500 kWh" in here("held")[1]
    arguments = ("held", "accept", "--reason", "known_by_another_source", "--note", "the pilot is over")
    code, says = here(*arguments)
    assert code == 1
    assert "There is no terminal to ask on" in says
    code, says = here(*arguments, "--yes")
    assert code == 0
    assert f"session {first}, 1.000 kWh: The very same session" in says
    assert (
        "2 sessions, 1.500 kWh. What another STEVE_SOURCE has ready and never sent is taken from it" in says
    )
    assert "Ordered for 2 sessions" in says
    two.sync()
    assert two.lago_wh_by_session() == {first: 1_000, second: 500}
    assert here("held") == (0, "Nothing is held.\n")


def test_what_the_pilot_billed_is_left_as_billed_there(two, here):
    session = billed_by_the_pilot(two)
    billed = ("--reason", "billed_by_another_source", "--note", "pilot", "--yes")
    code, says = here("held", "exclude", *billed, "--to", "2020-01-01")
    assert (code, says) == (
        0,
        "No session is held as billed_by_another_source there. See: ocpp-billing held\n",
    )
    assert here("held", "exclude", *billed)[0] == 0
    two.sync()
    assert two.state_of(session) == ("excluded", "by_operator")
    assert here("held", "accept", "--reason", "unmapped_tag", "--note", "x")[0] == 2


# -- at once -----------------------------------------------------------------------------------------------


def decide_under(world, source):
    """One step of deciding, as the leader of that source does it."""
    config = world.config(steve_source=source)
    with open_clients(config) as (_, lago):
        decide_sessions(lambda: policy_of(config), LagoDirectory(lago, config.lago_metric_code), None)


def both_ask(world):
    """A session that both sources are to bill with their next decision: one by its mapping, one by a person."""
    under(world, "main")
    world.go_live()
    session = world.session("TAG-ALICE", energy_wh=1_000)
    world.sync()
    assert world.state_of(session) == ("held", "unmapped_tag")
    under(world, "renamed")
    world.map("TAG-ALICE", "alice")
    world.go_live()
    world.sync()
    assert world.state_of(session) == KNOWN
    accept(world, session)
    under(world, "main")
    world.map("TAG-ALICE", "alice")
    return session


@pytest.mark.parametrize("first", ["main", "renamed"])
def test_two_sources_decide_at_once(two, first):
    """Both have read that the other one has no event of it; the second to write looks again."""
    session = both_ask(two)
    second = {"main": "renamed", "renamed": "main"}[first]
    threads = Threads()
    with transaction.atomic(), connection.cursor() as cursor:
        lock_twins(cursor)
        threads.start(decide_under, two, first)
        wait_for_waiting(1)
        threads.start(decide_under, two, second)
        wait_for_waiting(2)
    threads.join()
    assert parts(session) == [("renamed", "queued")]
    for source in ("main", "renamed"):
        under(two, source)
        two.sync()
    under(two, "main")
    two.clock.advance(NIGHT)
    two.sync()
    assert parts(session) == [("renamed", "confirmed")]
    assert two.state_of(session) == BILLED
    assert two.lago_wh_by_session() == {session: 1_000}


def wait_for_waiting(number):
    """Until so many connections wait for the lock that this test holds."""
    for _ in range(600):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            if cursor.fetchone()[0] >= number:
                return
            cursor.execute("SELECT pg_sleep(0.02)")
    raise AssertionError("they do not wait for one another")


def test_without_looking_again_both_would_bill_it(two, monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr("ocpp_billing.billing.decide.keep_apart", lambda *_: None)
    session = both_ask(two)
    threads = Threads()
    with transaction.atomic(), connection.cursor() as cursor:
        lock_twins(cursor)
        threads.start(decide_under, two, "main")
        threads.start(decide_under, two, "renamed")
        wait_for_waiting(2)
    threads.join()
    assert len(parts(session)) == 2


def test_a_twin_that_comes_while_lago_is_asked_is_not_billed_beside_it(two, monkeypatch):
    """When main read its sessions, nobody else knew them."""
    session = both_ask(two)
    decide_under(two, "renamed")
    monkeypatch.setattr("ocpp_billing.billing.decide.read_twins", lambda *_: {})
    decide_under(two, "main")
    assert parts(session) == [("renamed", "queued")]


def test_what_is_just_being_claimed_is_not_taken_over(two):
    """Delivery of the pilot has taken the event; the decision waits for that, and holds the session."""
    session = piloted(two)
    accept(two, session)
    threads = Threads()
    with transaction.atomic():
        UsageEvent.objects.filter(source_id="pilot").update(attempts=1, first_attempt_at=two.clock.now())
        threads.start(decide_under, two, "main")
        for _ in range(600):
            if waits_for_a_lock():
                break
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(0.02)")
        assert waits_for_a_lock()
    threads.join()
    assert parts(session) == [("pilot", "queued")]
    decide_under(two, "main")
    assert two.state_of(session) == BILLED
    assert "does not know yet what became of it" in two.words_about(session)


@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_crash_while_it_is_taken_over(two, phase):
    session = piloted(two)
    accept(two, session)
    two.crash_at("db commit decide", phase)
    install_hook(None)
    two.sync()
    under(two, "pilot")
    two.go_live()
    two.sync()
    assert parts(session) == [("main", "confirmed")]
    assert two.lago_wh_by_session() == {session: 1_000}
    assert ChargingSession.objects.count() == 2
