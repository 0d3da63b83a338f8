"""StEvE comes back from a backup at any moment, again and again: each session is in the ledger once, as it is.

Cars come and go, some of their sessions show up late, tags are deleted and their last sessions' numbers given out
again, the bridge reads in full or looks in between, backups are made and played back; in the end the ledger knows every session that StEvE shows, and has forgotten none that it ever showed.
"""

from __future__ import annotations

import random
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from ocpp_billing.billing import control
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.simulators.steve import StoreError
from ocpp_billing.steve.wire import fingerprint
from ocpp_billing.sync.clients import steve_client
from ocpp_billing.sync.journal import RunJournal, begin_run
from ocpp_billing.sync.lanes import record
from ocpp_billing.sync.models import SyncRun, WorkerHeartbeat
from ocpp_billing.sync.reading import discover_and_record
from ocpp_billing.sync.watch import look

if TYPE_CHECKING:
    from ocpp_billing.steve.client import SteveClient
    from tests.world import World

FAMILIES = ("3.7", "3.9", "3.10", "3.11", "3.14")
SEEDS, MANY_SEEDS, STEPS = 1, 60, 40
BOXES = ("CP-1", "CP-2", "CP-3")
TAGS = ("TAG-1", "TAG-2", "TAG-3", "TAG-4")
SHORT, LONG = timedelta(minutes=7), timedelta(hours=5)


class Days:
    """What happens at random at charge points, in StEvE and between two readings."""

    def __init__(self, world: World, steve: SteveClient, seed: int) -> None:
        self.world, self.steve, self.draw = world, steve, random.Random(seed)
        self.running: list[tuple[int, str]] = []
        self.running_then: list[tuple[int, str]] = []
        self.uncommitted: list[tuple[int, str]] = []
        self.ever: set[tuple[int, bytes]] = set()
        for number in range(12):
            world.session(TAGS[number % 3], BOXES[number % 2], start=timedelta(hours=30 - 2 * number))
        self.read()
        self.back_up()
        self.acts = {
            self.start: 6, self.stop: 5, self.whole: 4, self.watch: 6, self.read: 4,
            self.start_slowly: 2, self.commit: 2,
            self.back_up: 2, self.play_back: 2, self.delete_tag: 0.3, self.restart: 0.5,
            self.wait: 1,
        }  # fmt: skip

    def play(self) -> None:
        for act in self.draw.choices([*self.acts], [*self.acts.values()], k=STEPS):
            self.world.clock.advance(SHORT)
            act()
            self.look_after()
        while self.uncommitted:
            self.commit()
        for _ in range(3):
            self.world.clock.advance(timedelta(days=1))
            last = self.read()
            self.look_after()
        assert last.status == "completed", last.errors

    def start(self) -> None:
        box = self.draw.choice(BOXES)
        number = self.world.start(self.draw.choice(TAGS), box, at=timedelta(minutes=1))
        self.running.append((number, box))

    def start_slowly(self) -> None:
        """An id is given out, but the session shows up later."""
        box, begun_at = self.draw.choice(BOXES), self.world.clock.now() - timedelta(minutes=1)
        tag, register = self.draw.choice(TAGS), self.draw.randrange(1_000)
        number = self.world.steve.start_transaction(box, 2, tag, begun_at, register, committed=False)
        self.uncommitted.append((number, box))

    def commit(self) -> None:
        if self.uncommitted:
            number, box = self.uncommitted.pop(self.draw.randrange(len(self.uncommitted)))
            with suppress(StoreError):  # it went with its tag
                self.world.steve.commit(number)
                self.running.append((number, box))

    def stop(self) -> None:
        if self.running:
            number, box = self.running.pop(self.draw.randrange(len(self.running)))
            self.world.stop(number, box, at=timedelta(), meter_wh=self.draw.randrange(2_000, 90_000))

    def whole(self) -> None:
        self.world.session(self.draw.choice(TAGS), self.draw.choice(BOXES), 2, SHORT, timedelta(minutes=1))

    def read(self) -> SyncRun:
        """The reading part of a full run."""
        run = begun("schedule")
        discover_and_record(self.world.config(), self.steve, RunJournal(run))
        return RunJournal(run).finish("live")

    def watch(self) -> None:
        """A tick of the watch lane; a full run follows where StEvE looks like another one."""
        config = self.world.config()
        found = look(config, self.steve, worker="test")
        if found is None or not found.news:
            return
        if not found.same_steve:
            self.read()
            return
        run = begun("watch")
        record(config, found, RunJournal(run))
        RunJournal(run).finish("live")

    def back_up(self) -> None:
        self.world.steve.snapshot()
        self.running_then = [*self.running]

    def play_back(self) -> None:
        self.world.steve.restore()
        self.uncommitted.clear()
        self.running = [*self.running_then]

    def delete_tag(self) -> None:
        with suppress(KeyError):  # it is gone, and nobody came with it since
            self.world.steve.delete_tag(self.draw.choice(TAGS))

    def restart(self) -> None:
        """The database is an old one: it gives out again what was deleted at the end."""
        self.world.steve.restart_database()
        self.uncommitted.clear()

    def wait(self) -> None:
        self.world.clock.advance(LONG)

    def look_after(self) -> None:
        """Nothing that was recorded goes or changes what it is, and no id means two sessions."""
        rows = {(row.steve_id, bytes(row.fingerprint)) for row in ChargingSession.objects.all()}
        assert rows >= self.ever
        self.ever = rows

    def shown(self) -> set[tuple[int, bytes]]:
        return {(row.steve_id, fingerprint(row)) for row in self.steve.transactions().rows}


def begun(trigger: str) -> SyncRun:
    run = begin_run(None, source="main", trigger=trigger, requested_by="test", worker="test")
    assert run is not None
    return run


def known() -> set[tuple[int, bytes]]:
    """The sessions that the ledger takes to be in StEvE."""
    there = ChargingSession.objects.filter(superseded_at=None, vanished_at=None)
    return {(row.steve_id, bytes(row.fingerprint)) for row in there}


@pytest.mark.parametrize("release", FAMILIES)
@pytest.mark.parametrize(
    "seed",
    [
        number if number < SEEDS else pytest.param(number, marks=pytest.mark.long)
        for number in range(MANY_SEEDS)
    ],
)
def test_the_ledger_knows_what_a_steve_shows_that_is_restored_at_any_moment(world, seed):
    world.go_live()
    WorkerHeartbeat.objects.create(worker="test", source_id="main", leader=True)
    with steve_client(world.config()) as steve:
        days = Days(world, steve, seed)
        days.play()
        assert known() == days.shown()
    if ChargingSession.objects.exclude(superseded_at=None).exists():
        assert "restored from a backup" in (control.read_status(world.config()).pause_reason or "")
