"""The disk of the database is full: it is said in words, everywhere, and nothing is lost.

No file system is filled here: what PostgreSQL answers then is put in its place.
"""

from __future__ import annotations

import json
import math
import shutil
import socket
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import psycopg
import pytest
from django.db import OperationalError, connection
from django.test import Client

from ocpp_billing.alerts.conditions import conditions
from ocpp_billing.cli import main
from ocpp_billing.database import _WRITE, has_room
from ocpp_billing.sync.journal import begin_run
from ocpp_billing.sync.leader import Leader
from ocpp_billing.sync.models import SyncRun
from ocpp_billing.sync.worker import Worker

SAYS = "The disk of the database is full"
DO = "Make room on it"
NO_SPACE = 'could not extend file "base/16385/17118_fsm": No space left on device'


def refuse():
    """What Django raises when PostgreSQL cannot write."""
    raise OperationalError(NO_SPACE) from psycopg.errors.DiskFull(NO_SPACE)


@contextmanager
def full_disk(*beginnings):
    """Statements of this thread that begin so meet a full disk; changing what is there still works."""

    def execute(go_on, sql, params, many, context):
        return refuse() if sql.strip().startswith(beginnings) else go_on(sql, params, many, context)

    with connection.execute_wrapper(execute):
        yield


ADDS = ("INSERT", "SELECT count(*) FROM generate_series", "CREATE TEMPORARY TABLE", "COPY")


def test_room_is_looked_for_by_writing_a_file(world):
    written = []

    def explained(go_on, sql, params, many, context):
        if sql == _WRITE:
            go_on(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", params, many, context)
            written.append(context["cursor"].fetchone()[0])
        return go_on(sql, params, many, context)

    with connection.execute_wrapper(explained):
        assert has_room()
    (said,) = written
    (plan,) = json.loads(said) if isinstance(said, str) else said
    assert plan["Plan"]["Temp Written Blocks"] * 8192 > 500_000


def test_the_machine_that_watches_and_the_doctor_say_it(world, monkeypatch, capsys):
    for name, value in world.environment().items():
        monkeypatch.setenv(name, value)
    with full_disk(*ADDS):
        ready = Client().get("/readyz")
        capsys.readouterr()
        code = main(["doctor", "--json"])
    assert ready.status_code == 503
    assert SAYS in ready.json()["problem"]
    assert DO in ready.json()["problem"]
    found = {each["code"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert code == 1
    assert found["disk_full"]["level"] == "problem"
    assert SAYS in found["disk_full"]["says"]
    assert DO in found["disk_full"]["do"]
    assert Client().get("/readyz").status_code == 200


def test_a_disk_that_is_nearly_full_is_told_before_it_is(world, monkeypatch, capsys):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.sync()
    for name, value in world.environment().items():
        monkeypatch.setenv(name, value)

    def told():
        capsys.readouterr()
        main(["doctor", "--json"])
        found = {each["code"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
        alerts = {each.code: each for each in conditions(world.config(), world.clock.now())}
        ready = Client().get("/readyz", headers={"Host": "localhost:8000"}).json()
        return found, alerts, ready["disk_free_bytes"]

    def has(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))

    has(10**9)
    found, alerts, free = told()
    assert (found["disk_low"]["level"], free) == ("warning", 10**9)
    assert alerts["disk_low"].says == "The disk of the database is nearly full: 1.0 GB are left."
    assert "Make room on it" in alerts["disk_low"].do
    has(10**10)
    found, alerts, free = told()
    assert (found["disk"]["level"], free) == ("ok", 10**10)
    assert "disk_low" not in found.keys() | alerts.keys()
    # Of a server on another machine nothing is known: its folder might be one here, too.
    monkeypatch.setitem(connection.settings_dict, "HOST", "db.example.org")
    assert "disk_low" not in told()[1]
    assert told()[2] is None


def test_a_command_says_it(world, monkeypatch, capsys):
    for name, value in world.environment().items():
        monkeypatch.setenv(name, value)
    with full_disk("INSERT"):
        assert main(["sync"]) == 1
    said = capsys.readouterr().err
    assert SAYS in said
    assert DO in said


def test_a_run_that_a_command_began_and_a_full_disk_cut_off_names_the_disk(world, monkeypatch, capsys):
    world.go_live()
    for name, value in world.environment().items():
        monkeypatch.setenv(name, value)
    with full_disk('INSERT INTO "sync_log"'):
        assert main(["sync"]) == 1
    assert SAYS in capsys.readouterr().err
    run = SyncRun.objects.latest("pk")
    assert run.status == "interrupted"
    assert SAYS in run.errors[0]["error"]
    assert DO in run.errors[0]["error"]
    assert world.sync().status == "completed"


class Stops:
    """An event that is set after a number of pauses, and knows how long they were."""

    def __init__(self, after):
        self.pauses, self._after = [], after

    def is_set(self):
        return len(self.pauses) >= self._after

    def wait(self, seconds):
        self.pauses.append(seconds)


class Beats:
    """A heartbeat that needs no database."""

    def lead(self, _pid):
        pass


@pytest.fixture
def worker(world):
    worker = Worker(world.config(), name="w")
    worker.stopping = Stops(after=8)
    return worker


def work(worker, monkeypatch, lead):
    """Let a worker work whose every term of office ends in this way."""
    monkeypatch.setattr(Leader, "lead", lead)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker._work(Beats(), theirs)


def test_a_database_that_lets_in_and_cannot_write_is_tried_ever_more_slowly(worker, monkeypatch):
    work(worker, monkeypatch, lambda _leader: refuse())
    assert worker.stopping.pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_after_a_long_while_that_went_well_it_is_tried_soon_again(worker, monkeypatch):
    monkeypatch.setattr("ocpp_billing.sync.worker.BACK_AFTER_S", -math.inf)
    work(worker, monkeypatch, lambda _leader: refuse())
    assert worker.stopping.pauses == [0.2] * 8


def test_the_run_that_it_cut_off_says_why(world, worker, monkeypatch):
    worker.stopping = Stops(after=3)
    whys = []

    def lead(leader):
        whys.append(leader.lost)
        if len(whys) == 2:
            connection.close()
            raise OperationalError("connection refused")
        refuse()

    work(worker, monkeypatch, lead)
    assert whys[0] is None
    assert SAYS in whys[1]
    assert whys[2] == whys[1]  # what came first explains the rest

    world.go_live()
    run = begin_run(None, source="main", trigger="manual", requested_by="test", worker="w")
    leader = Leader(world.config(), "w", None, None, worker.stopping, 0, whys[1])
    monkeypatch.setattr("ocpp_billing.sync.leader.leader_transaction", nullcontext)
    leader._recover()
    cut_off = SyncRun.objects.get(pk=run.pk)
    assert cut_off.status == "interrupted"
    assert SAYS in cut_off.errors[0]["error"]
