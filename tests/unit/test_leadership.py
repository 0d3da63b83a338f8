"""When a standby loses patience with a leader."""

from datetime import UTC, datetime, timedelta

import pytest

from ocpp_billing.sync import leadership
from ocpp_billing.sync.leadership import FROZEN_AFTER_S, Holder, Patience, application_name

SEEN = datetime(2026, 3, 17, 12, tzinfo=UTC)
LEADER = Holder(4711, "ocpp-billing worker abc")


@pytest.fixture
def look(monkeypatch):
    """Look once a second until a moment; returns whether patience was over then."""
    clock = {"now": 1000.0}
    monkeypatch.setattr(leadership.time, "monotonic", lambda: clock["now"])
    patience = Patience()

    def look(until_s, holder=LEADER, seen_at=lambda _: SEEN):
        over = False
        while clock["now"] < 1000 + until_s:
            clock["now"] += 1
            over = patience.is_over(holder, seen_at(clock["now"]), clock["now"])
        return over

    look.skip = lambda seconds: clock.__setitem__("now", clock["now"] + seconds)
    return look


def test_a_leader_that_says_nothing_for_half_a_minute_is_frozen(look):
    assert not look(FROZEN_AFTER_S + 1)
    assert look(FROZEN_AFTER_S + 2)


def test_one_that_beats_is_not(look):
    assert not look(600, seen_at=lambda now: SEEN + timedelta(seconds=now // 25 * 25))


def test_a_new_leader_has_all_the_time_again(look):
    look(FROZEN_AFTER_S - 1)
    assert not look(FROZEN_AFTER_S + 20, holder=Holder(4712, LEADER.application))


def test_one_that_never_beat_is_frozen_too(look):
    assert look(FROZEN_AFTER_S + 2, seen_at=lambda _: None)


def test_nobody_is_not_frozen(look):
    assert not look(600, holder=None)


def test_a_standby_that_was_frozen_itself_starts_over(look):
    look(20)
    look.skip(3600)  # SIGSTOP, then SIGCONT: what it knows is an hour old
    assert not look(3600 + 20 + FROZEN_AFTER_S)
    assert look(3600 + 20 + FROZEN_AFTER_S + 5)


def test_clocks_of_two_machines_need_not_agree(look):
    """Only whether the heartbeat changes counts, not what time it names."""
    assert not look(600, seen_at=lambda now: SEEN - timedelta(days=1) + timedelta(seconds=now // 5))


def test_connections_are_called_so_that_postgresql_does_not_cut_the_name():
    name = application_name("a-very-long-host-name-of-a-pod-in-a-cluster-0123456789:4242:0123456789ab")
    assert name == "ocpp-billing worker 0123456789ab"
    assert len(name) < 64
