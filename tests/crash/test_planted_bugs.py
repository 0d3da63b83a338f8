"""The tests of the test: bugs that only a crash shows are planted, and the enumeration finds each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ocpp_billing import clock
from ocpp_billing.billing import decide, outbox
from ocpp_billing.billing.deliver import Courier
from ocpp_billing.database import fenced_transaction
from ocpp_billing.lago.wire import timestamp_text
from tests.crash.enumeration import Deaths, enumerated
from tests.crash.stories import STORIES

STORY = {story.name: story for story in STORIES}


def what_crashes_show(world, story, near, sign):
    """What the judges say about the first crash at such effects that shows the sign, or None.

    Without a crash the story ends well.
    """
    with enumerated(world, STORY[story]) as plays:
        plays.observe()
        for number, boundary in enumerate(plays.undisturbed):
            if any(word in boundary.effect for word in near):
                try:
                    plays.crash(Deaths(number))
                except AssertionError as error:
                    if sign in str(error):
                        return str(error)
    return None


DELIVERY = ("claim", "POST /events", "deliver")


@pytest.mark.parametrize("store", ["postgres", "clickhouse"])
def test_attempts_that_are_only_counted_when_the_answer_is_there_are_found(world, monkeypatch):
    monkeypatch.setattr(
        outbox, "_CLAIM", changed(outbox._CLAIM, "attempts = attempts + 1", "answer = answer")
    )
    monkeypatch.setattr(
        outbox,
        "_RECORD",
        changed(outbox._RECORD, "state = r.state", "attempts = attempts + 1, state = r.state"),
    )
    assert what_crashes_show(
        world, "stop_changes_after_the_crash", DELIVERY, "the ledger says that it cannot"
    )


@pytest.mark.parametrize("store", ["clickhouse-plain"])
def test_what_is_sent_again_before_lago_would_show_it_is_found(world, monkeypatch):
    monkeypatch.setattr(Courier, "_bills_repeats", lambda _: False)
    assert what_crashes_show(world, "corrections", DELIVERY, "twice")


@pytest.mark.parametrize("store", ["clickhouse"])
def test_a_timestamp_that_is_made_anew_for_a_retry_is_found(world, monkeypatch):
    claimed = outbox._claimed

    def made_anew(row):
        item = claimed(row)
        if item.attempts == 1:
            return item
        event = replace(item.event, timestamp=timestamp_text(clock.now()))
        return replace(item, event=event, may_be_known=False)

    monkeypatch.setattr(outbox, "_claimed", made_anew)
    # The second line of defence: what is sent again only when Lago has not got it is not there twice.
    monkeypatch.setattr(Courier, "_bills_repeats", lambda _: False)
    assert what_crashes_show(world, "corrections", DELIVERY, "twice")


def test_a_decision_and_its_event_in_two_transactions_are_found(world, monkeypatch):
    write = decide._write
    update_sessions = decide._UPDATE_SESSIONS

    def in_two_transactions(judged, policy, counts, fence):
        monkeypatch.setattr(decide, "_UPDATE_SESSIONS", "SELECT outcome, 0 FROM judged WHERE false")
        write(judged, policy, counts, fence)
        with fenced_transaction("decide sessions", fence) as cursor:
            cursor.execute(decide._CREATE_JUDGED)
            with cursor.copy("COPY judged FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(decide._JUDGED_TYPES)
                for item in judged:
                    copy.write_row(decide._record(item))
            cursor.execute(update_sessions)

    monkeypatch.setattr(decide, "_write", in_two_transactions)
    assert what_crashes_show(world, "corrections", ["decide"], "unexplained")


def changed(statement: str, old: str, new: str) -> str:
    """A statement with a part changed that must be there."""
    assert old in statement
    return statement.replace(old, new)
