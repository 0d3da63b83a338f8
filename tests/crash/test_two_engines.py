"""Two engines on one database: an old leader sleeps, a new one takes over, the old one wakes up.

Asleep just before a call, its request reaches Lago long after the new leader has finished; asleep just
after one, it deals with an answer that is long out of date.
"""

from __future__ import annotations

import sys
import threading

import pytest

from ocpp_billing.database import FenceError, fenced_transaction
from ocpp_billing.effects import install_hook
from tests.crash.enumeration import come_to_rest, enumerated
from tests.crash.mortal import Mortal
from tests.crash.oracle import assert_conserved, assert_whole, outcome_of
from tests.crash.stories import STORIES

STORY = {story.name: story for story in STORIES}
SAMPLE = 10
WITHIN_S = 60


class Sleeper(Mortal):
    """A leader in a thread of its own that falls asleep at a boundary and is woken later."""

    def __init__(self, sleeps_at, act):
        super().__init__(dies_at=sleeps_at)
        self.asleep, self.woken = threading.Event(), threading.Event()
        self.fenced_off = False
        self.error = None
        self._runs = threading.Thread(target=self._run, args=(act,))

    def die(self):
        """Fall asleep instead."""
        self.dies_at = None
        self.asleep.set()
        assert self.woken.wait(WITHIN_S)

    def fall_asleep(self):
        """Begin; returns when it sleeps, or has ended."""
        self._runs.start()
        assert self.asleep.wait(WITHIN_S)

    def wake(self):
        """Let it go on to its end."""
        self.woken.set()
        self._runs.join(WITHIN_S)
        assert not self._runs.is_alive()
        install_hook(None)
        if self.error is not None:
            raise self.error

    def _run(self, act):
        try:
            self.live(act)
        except FenceError:
            self.fenced_off = True
        except Exception as error:  # noqa: BLE001 - wake() raises it in the thread of the test
            self.error = error
        finally:
            self.asleep.set()


def sleep_through(plays, sleeps_at):
    """Play a story whose first leader sleeps while a second one does all the work; returns the sleeper."""
    plays.start.restore()
    world, story = plays.world, plays.story
    sleeper = Sleeper(sleeps_at, lambda: story.act(world))
    sleeper.fall_asleep()
    story.between(world)
    try:
        world.sync()
        assert_whole(world)
    finally:
        sleeper.wake()
    assert_whole(world)
    assert_conserved(world)
    come_to_rest(world)
    return sleeper


def moments(plays):
    """Where a leader may sleep: anywhere but within a transaction, whose end the new leader waits for."""
    chosen = (deaths.first for deaths in plays.sample(4 * SAMPLE, 0))
    outside = [number for number in chosen if not plays.undisturbed[number].effect.startswith("notify")]
    return list(dict.fromkeys(outside))[:SAMPLE]


def had_begun(plays, number):
    """Whether the leader's run had begun when it fell asleep, and it had more to write after it."""
    passed = [str(boundary) for boundary in plays.undisturbed]
    return passed.index("after db commit begin run") <= number < passed.index("after db commit finish run")


@pytest.mark.parametrize("store", ["postgres", pytest.param("clickhouse", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "story",
    [
        "stops_after_the_crash",
        "stop_changes_after_the_crash",
        "lost_answers",
        "tried_in_vain_and_late_is_billed_now",
    ],
)
def test_an_old_leader_that_wakes_up_changes_nothing(world, story):
    with enumerated(world, STORY[story]) as plays:
        plays.observe()
        for number in moments(plays):
            sleeper = sleep_through(plays, number)
            if STORY[story].invoiced is not None:
                assert outcome_of(world) == plays.outcome, plays.undisturbed[number]
            if had_begun(plays, number):
                assert sleeper.fenced_off, plays.undisturbed[number]


def take_down_the_fence(monkeypatch):
    """Let every transaction of a run commit, whatever has become of the run."""

    def unfenced(name, _fence):
        return fenced_transaction(name, None)

    for module in list(sys.modules.values()):
        if vars(module).get("fenced_transaction") is fenced_transaction and module.__name__ != __name__:
            monkeypatch.setattr(module, "fenced_transaction", unfenced)


def test_without_the_fence_an_old_leader_writes_what_is_out_of_date(world, monkeypatch):
    with enumerated(world, STORY["stop_changes_after_the_crash"]) as plays:
        plays.observe()
        stale = [
            number
            for number, boundary in enumerate(plays.undisturbed)
            if boundary == ("http steve GET /transactions", "after")
        ]
        for number in stale:
            assert sleep_through(plays, number).fenced_off
        take_down_the_fence(monkeypatch)
        with pytest.raises(AssertionError, match="9000 Wh delivered"):
            [sleep_through(plays, number) for number in stale]
