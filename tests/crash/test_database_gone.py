"""The database goes away in the middle: connections are killed, commits go unanswered, the server restarts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from django.db.utils import OperationalError

from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.embedded.postgres import EmbeddedPostgres
from ocpp_billing.settings import _database
from ocpp_billing.simulators.server import Fault
from ocpp_billing.sync.models import SyncRun
from ocpp_billing.sync.triggers import request_run
from ocpp_billing.sync.worker import DATABASE_GONE
from tests.crash.enumeration import come_to_rest, enumerated
from tests.crash.mortal import Mortal
from tests.crash.oracle import assert_conserved, assert_whole, outcome_of
from tests.crash.stories import STORIES
from tests.engine.processes import eventually, running
from tests.plugin import SETTINGS

STORY = {story.name: story for story in STORIES}
SAMPLE = 6
RESTARTS = 4
NEVER = "0 0 29 2 *"  # at the soonest in four years' time
UNDER_WAY = ("requested", "running")


class CutOff(Mortal):
    """An engine that goes on after something has happened to its database; it meets errors, not death."""

    def __init__(self, at, happens):
        super().__init__(dies_at=at)
        self.happens = happens

    def die(self):
        """Instead of dying, lose the database once."""
        self.dies_at = None
        self.happens()


def kill_the_connection():
    """End the server process behind the engine's connection, as an administrator or a failover does."""
    ours = connection.connection
    if ours is None or ours.closed:
        return
    with psycopg.connect(parameters(), autocommit=True) as another:
        another.execute("SELECT pg_terminate_backend(%s, 5000)", [ours.info.backend_pid])


def leave_the_commit_unanswered():
    """The transaction was committed, and the answer never came."""
    connection.close()
    raise OperationalError("server closed the connection unexpectedly")


def parameters():
    """The engine's database, for a connection of our own."""
    given = connection.get_connection_params()
    names = {"host", "port", "user", "password", "dbname"}
    return psycopg.conninfo.make_conninfo(**{name: given[name] for name in names & given.keys()})


def play(plays, number, happens):
    """Play a story whose engine loses its database at a boundary, and then begins anew.

    Returns whether the engine met an error of its database.
    """
    plays.start.restore()
    world, story = plays.world, plays.story
    engine = CutOff(number, happens)
    met_it = True
    with contextlib.suppress(*DATABASE_GONE):
        engine.live(lambda: story.act(world))
        met_it = False
    assert_whole(world)
    story.between(world)
    world.clock.advance(seconds=20)
    story.act(world)
    come_to_rest(world)
    assert outcome_of(world) == plays.outcome, plays.undisturbed[number]
    return met_it


@pytest.mark.parametrize("store", ["postgres", "clickhouse"])
@pytest.mark.parametrize("story", ["corrections", "lost_answers"])
def test_a_connection_that_is_killed_costs_a_run_and_nothing_else(world, story):
    with enumerated(world, STORY[story]) as plays:
        plays.observe()
        met = [play(plays, deaths.first, kill_the_connection) for deaths in plays.sample(SAMPLE, 0)]
        assert sum(met) > SAMPLE // 2


@pytest.mark.parametrize("story", ["corrections", "stop_changes_after_the_crash"])
def test_a_commit_whose_answer_never_came_is_neither_lost_nor_repeated(world, story):
    with enumerated(world, STORY[story]) as plays:
        plays.observe()
        commits = [
            number
            for number, boundary in enumerate(plays.undisturbed)
            if boundary.phase == "after" and boundary.effect.startswith("db commit")
        ]
        for number in commits[:: len(commits) // SAMPLE]:
            assert play(plays, number, leave_the_commit_unanswered)


# What it committed has to survive its own crash, though not a power cut.
OF_OWN_SERVER = {**SETTINGS, "synchronous_commit": "on"}


@pytest.fixture(scope="module")
def another_server(django_db_blocker):
    """A PostgreSQL server of these tests' own with an empty ledger."""
    folder = Path(tempfile.mkdtemp(prefix="ocpp-billing-restart-"))
    folder.chmod(0o711)
    server = EmbeddedPostgres(folder, settings=OF_OWN_SERVER)
    try:
        server.start()
        with django_db_blocker.unblock(), behind_the_connection(server):
            call_command("migrate", interactive=False, verbosity=0)
        yield server
    finally:
        server.stop()
        for path in {folder, server.home or folder}:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def behind_the_connection(server):
    before = dict(connection.settings_dict)
    connection.close()
    connection.settings_dict.update(_database(server.url))
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.clear()
        connection.settings_dict.update(before)


@pytest.fixture
def own_server(another_server, django_db_blocker):
    """That server, behind Django's connection; it may be restarted."""
    with django_db_blocker.unblock(), behind_the_connection(another_server):
        yield another_server


def test_a_server_that_restarts_in_the_middle_costs_a_run_and_nothing_else(own_server):
    from tests.world import open_world

    def restart():
        own_server.stop()
        own_server.start()

    with open_world() as world, enumerated(world, STORY["lost_answers"]) as plays:
        plays.observe()
        met = [play(plays, deaths.first, restart) for deaths in plays.sample(RESTARTS, 1)]
        assert any(met)


@pytest.fixture
def real_time_world(own_server):
    """A world on the machine's clock whose ledger is on that server, and the settings of a worker in it."""
    from tests.world import open_world

    with open_world(now=datetime.now(UTC)) as world:
        world.payer("TAG-ALICE", "alice")
        world.go_live()
        quiet = {"SYNC_CRON_SCHEDULE": NEVER, "SYNC_WATCH_SECONDS": "0", "LOG_LEVEL": "info"}
        yield world, world.environment() | quiet | {"DATABASE_URL": own_server.url}


def crash(server):
    """The server is killed, as by the machine when it runs out of memory."""
    os.kill(server.pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [EmbeddedPostgres.stop, crash], ids=["restarted", "crashed"])
def test_a_worker_outlives_its_database_in_a_run_and_when_idle(own_server, real_time_world, end, tmp_path):
    world, settings = real_time_world
    world.session("TAG-ALICE", "CP-1", energy_wh=6_000)
    with running("worker", settings=settings, log=tmp_path / "log") as worker:

        def the_database_goes_away_and_comes_back():
            missed, led = worker.said().count("database away"), worker.said().count("worker leads")
            connection.close()
            end(own_server)
            eventually(lambda: worker.said().count("database away") > missed, worker.said)
            own_server.stop()
            own_server.start()
            eventually(lambda: worker.said().count("worker leads") > led, worker.said)

        worker.says("worker leads")
        world.lago.add_fault(Fault("slow", path="/events/batch", seconds=1.5))
        cut_off = request_run("main", trigger="manual", requested_by="test").run_id
        eventually(lambda: any(path.endswith("/batch") for path in world.posts()), worker.said)
        the_database_goes_away_and_comes_back()
        eventually(lambda: UsageEvent.objects.get().state == "confirmed", worker.said)
        assert SyncRun.objects.get(pk=cut_off).status == "interrupted"
        eventually(lambda: not SyncRun.objects.filter(status__in=UNDER_WAY).exists(), worker.said)

        the_database_goes_away_and_comes_back()
        world.session("TAG-ALICE", "CP-2", energy_wh=1_500)
        request_run("main", trigger="manual", requested_by="test")
        confirmed = UsageEvent.objects.filter(state="confirmed")
        eventually(lambda: confirmed.count() == 2, worker.said)
        assert worker.terminate() == 0
    assert world.lago_wh() == 7_500
    assert_whole(world)
    assert_conserved(world)
