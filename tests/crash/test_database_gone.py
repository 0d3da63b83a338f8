"""The database goes away in the middle: connections are killed, commits go unanswered, the server restarts."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from django.db.utils import OperationalError

from ocpp_billing.embedded.postgres import EmbeddedPostgres
from ocpp_billing.settings import _database
from ocpp_billing.sync.worker import DATABASE_GONE
from tests.crash.enumeration import come_to_rest, enumerated
from tests.crash.mortal import Mortal
from tests.crash.oracle import assert_whole, outcome_of
from tests.crash.stories import STORIES
from tests.plugin import SETTINGS

STORY = {story.name: story for story in STORIES}
SAMPLE = 12
RESTARTS = 4


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


@pytest.fixture
def own_server(django_db_blocker):
    """A PostgreSQL server of this test's own, behind Django's connection; it may be restarted."""
    folder = Path(tempfile.mkdtemp(prefix="ocpp-billing-restart-"))
    folder.chmod(0o711)
    server = EmbeddedPostgres(folder, settings=SETTINGS)
    before = dict(connection.settings_dict)
    try:
        url = server.start()
        with django_db_blocker.unblock():
            connection.close()
            connection.settings_dict.update(_database(url))
            call_command("migrate", interactive=False, verbosity=0)
            yield server
    finally:
        with django_db_blocker.unblock():
            connection.close()
        connection.settings_dict.clear()
        connection.settings_dict.update(before)
        server.stop()
        for path in {folder, server.home or folder}:
            shutil.rmtree(path, ignore_errors=True)


def test_a_server_that_restarts_in_the_middle_costs_a_run_and_nothing_else(own_server):
    from tests.world import open_world

    def restart():
        own_server.stop()
        own_server.start()

    with open_world() as world, enumerated(world, STORY["lost_answers"]) as plays:
        plays.observe()
        met = [play(plays, deaths.first, restart) for deaths in plays.sample(RESTARTS, 1)]
        assert any(met)
