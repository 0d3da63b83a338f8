"""Backup and restore as docs/operations.md has it: PostgreSQL's own programs, and commands as they are typed.

What must be right afterwards in every case: tests/engine/test_scenarios_delivering.py, rows 36 and 38.
"""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import psycopg
import pytest

from ocpp_billing.embedded.binaries import find_binaries
from tests.engine.processes import run_command, test_database_url

HOUR = timedelta(hours=1)
RESTORED = "restored_by_a_test"


@pytest.fixture
def now():
    """Processes of their own have the machine's clock."""
    return datetime.now(UTC)


def address_of(database):
    return urlsplit(test_database_url())._replace(path=f"/{database}").geturl()


def program(name, *arguments):
    """One of PostgreSQL's own, of the version that the embedded server has."""
    done = subprocess.run(
        [str(find_binaries().program(name)), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def migrate_twice_at_once(database):
    """As the web and the worker do, when the machine starts."""
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(run_command, "migrate", settings={"DATABASE_URL": database}) for _ in range(2)]
    assert [each.result().returncode for each in both] == [0, 0]


@contextmanager
def restored(dump, *, over_a_schema=False):
    """The address of a new database with the dump in it; the embedded one has its schema by then."""
    with psycopg.connect(test_database_url(), autocommit=True) as server:
        server.execute(f"DROP DATABASE IF EXISTS {RESTORED} WITH (FORCE)")
        server.execute(f"CREATE DATABASE {RESTORED} TEMPLATE template0")
        try:
            if over_a_schema:
                migrate_twice_at_once(address_of(RESTORED))
                program(
                    "psql",
                    address_of(RESTORED),
                    "--command=DROP SCHEMA public CASCADE",
                    "--command=CREATE SCHEMA public",
                )
            program(
                "pg_restore",
                "--single-transaction",
                "--no-owner",
                f"--dbname={address_of(RESTORED)}",
                str(dump),
            )
            yield address_of(RESTORED)
        finally:
            server.execute(f"DROP DATABASE IF EXISTS {RESTORED} WITH (FORCE)")


# The ClickHouse store does not refuse an id that it has; the other one would be the second line of defence.
@pytest.mark.parametrize("store", [pytest.param("postgres", marks=pytest.mark.long), "clickhouse"])
def test_a_dump_of_yesterday_is_restored_adopted_and_nothing_is_billed_twice(live, tmp_path):
    kept = live.session("TAG-ALICE", "CP-1", energy_wh=1_000)
    running = live.start("TAG-BOB", "CP-3", at=HOUR, meter_wh=1_000)
    live.sync()
    dump = tmp_path / "ocpp_billing.dump"
    program("pg_dump", "--format=custom", f"--file={dump}", test_database_url())

    live.stop(running, "CP-3", at=timedelta(minutes=5), meter_wh=5_000)
    since = live.session("TAG-ALICE", "CP-1", energy_wh=70)
    live.sync()
    live.sync()
    billed = live.lago_wh_by_session()
    assert billed == {kept: 1_000, running: 4_000, since: 70}
    events = live.lago_events()
    new = live.session("TAG-BOB", "CP-2", energy_wh=8)

    with restored(dump, over_a_schema=True) as database:
        settings = live.environment() | {"DATABASE_URL": database}

        def command(*arguments):
            return run_command(*arguments, settings=settings)

        # Whoever goes on as if nothing had happened is stopped before anything is sent.
        went_on = command("sync", "--json")
        assert went_on.returncode == 1, went_on.stderr
        said = json.loads(went_on.stdout)
        assert (said["status"], said["delivery"], said["accepted"]) == ("failed", "paused", 0)
        assert "ocpp-billing adopt" in str(said["errors"])
        assert live.lago_events() == events

        adopted = command("adopt")
        assert adopted.returncode == 0, adopted.stderr
        assert f"{len(events)} events of this source in Lago: 2 adopted, 0 in conflict" in adopted.stdout
        assert "Delivery goes on with the next synchronization." in adopted.stdout
        assert live.lago_events() == events

        for _ in range(2):
            assert command("sync", "--json").returncode == 0
        assert live.lago_wh_by_session() == {**billed, new: 8}
        balance = json.loads(command("balance", "--json").stdout)
        assert balance["unexplained"] == {"sessions": 0, "energy_wh": 0}
        assert balance["states"]["confirmed"] == {"sessions": 4, "energy_wh": 5_078}
        assert balance["read"] == {"sessions": 4, "energy_wh": 5_078}


@pytest.mark.long
def test_a_pause_before_adopting_stays_until_a_person_ends_it(live, tmp_path):
    dump = tmp_path / "ocpp_billing.dump"
    program("pg_dump", "--format=custom", f"--file={dump}", test_database_url())
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()
    new = live.session("TAG-BOB", "CP-2", energy_wh=8)

    with restored(dump) as database:
        settings = live.environment() | {"DATABASE_URL": database}
        assert run_command("pause", "--reason", "restored", settings=settings).returncode == 0
        adopted = run_command("adopt", settings=settings)
        assert "Go on with: ocpp-billing resume" in adopted.stdout, adopted.stderr
        assert live.lago_wh_by_session() == {session: 1_000}
        assert run_command("resume", settings=settings).returncode == 0
        assert run_command("sync", "--json", settings=settings).returncode == 0
        assert live.lago_wh_by_session() == {session: 1_000, new: 8}
