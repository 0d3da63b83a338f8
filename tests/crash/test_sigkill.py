"""Real processes, really killed at random moments: 0 lost, 0 doubled."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection

from ocpp_billing.simulators.server import Fault
from tests.crash.enumeration import come_to_rest
from tests.crash.oracle import assert_whole
from tests.crash.stories import show_stop
from tests.engine.processes import environment, test_database_url

STORES = ("postgres", "postgres-1.32", "postgres-1.30", "clickhouse-plain")
KILLS = 5
KILLS_LONG = 250
WITHIN_S = 30.0
BATCH = r"/events/batch"


class Engine:
    """Where processes of the engine come from."""

    def __init__(self, server):
        self._server = server

    def run(self, now, kill_after_s=None):
        """One synchronization; returns how it ended and how long it took, in seconds."""
        began = time.monotonic()
        pid = self._ask(now.isoformat())
        assert pid > 1, "that would be a whole group of processes"
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(pid, signal.SIGKILL)
        code = self._ask("how did it end?")
        wait_until_alone()
        return code, time.monotonic() - began

    def _ask(self, line):
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


@contextmanager
def engine_of(world, log):
    settings = world.environment(DELIVERY_EVENTS_PER_SECOND=0) | {"DATABASE_URL": test_database_url()}
    with log.open("w") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.engine_process"],
            env=environment(settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Engine(server)
        finally:
            server.stdin.close()
            server.wait(WITHIN_S)
            server.stdout.close()


def wait_until_alone():
    """Until the database has noticed that the process is gone, and rolled back what it had begun."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"
            )
            if cursor.fetchone()[0] == 0:
                return
        time.sleep(0.005)
    raise AssertionError("the killed process still holds a connection")


def something_happens(world, chance, known):
    """New sessions, another stop of an older one, an answer of Lago that gets lost."""
    for _ in range(chance.randint(1, 4)):
        number = len(known) + 1
        tag = chance.choice(["TAG-ALICE", "TAG-BOB", "TAG-NOBODY"])
        known.append(world.session(tag, f"CP-{number}", energy_wh=chance.randrange(0, 20_000)))
    if chance.random() < 0.5:
        show_stop(world, chance.choice(known), chance.randrange(0, 20_000))
    world.lago.clear_faults()
    kind = chance.choice([None, "drop_after", "drop_before", "status", "html", "truncate"])
    if kind is not None:
        world.lago.add_fault(
            Fault(kind, path=BATCH, status=503, after=chance.random() < 0.5, times=chance.randint(1, 3))
        )


def kill_again_and_again(world, seed, kills, log):
    """Until so many processes were killed in the middle of something; returns how many there were."""
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    world.payer("TAG-ALICE", "alice")
    world.payer("TAG-BOB", "bob")
    world.go_live()
    known, started, killed = [], 0, 0
    with engine_of(world, log) as engine:
        for _ in range(120):
            known.append(
                world.session("TAG-ALICE", f"CP-{len(known) + 1}", energy_wh=chance.randrange(9_000))
            )
        first, _ = engine.run(world.clock.now(), chance.uniform(0.05, 0.5))
        killed += first == -signal.SIGKILL
        assert engine.run(world.clock.advance(minutes=1))[0] in {0, 3}, log.read_text()
        _, takes_s = engine.run(world.clock.advance(minutes=1))
        while killed < kills:
            something_happens(world, chance, known)
            code, _ = engine.run(world.clock.advance(minutes=1), chance.uniform(0, 1.1 * takes_s))
            started += 1
            assert code in {0, 3, 1, -signal.SIGKILL}, log.read_text()
            killed += code == -signal.SIGKILL
            assert_whole(world)
            assert started < 20 * kills
    world.lago.clear_faults()
    world.clock.advance(timedelta(hours=1))
    world.sync()
    come_to_rest(world)
    return killed


@pytest.mark.parametrize("store", STORES)
def test_a_process_that_is_killed_loses_nothing_and_doubles_nothing(world, store, tmp_path, record_property):
    seed = STORES.index(store) + 1
    record_property("seed", seed)
    assert kill_again_and_again(world, seed, KILLS, tmp_path / "log") == KILLS
    record_property("kills", KILLS)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("store", STORES)
def test_a_process_that_is_killed_very_often(world, store, tmp_path, record_property):
    seed = random.SystemRandom().randrange(2**32)
    record_property("seed", seed)
    assert kill_again_and_again(world, seed, KILLS_LONG, tmp_path / "log") == KILLS_LONG
    record_property("kills", KILLS_LONG)
