"""PostgreSQL plans by statistics that may be those of a table that was nearly empty a moment ago."""

from __future__ import annotations

import pytest
from django.db import connection

from tests.world import ledger_tables


@pytest.fixture
def taken_for_empty(world):
    """PostgreSQL believes that the ledger has forty pages and no row, as after a look at what was deleted."""
    if connection.pg_version < 180000:
        pytest.skip("statistics can be given to PostgreSQL 18 and later only")
    with connection.cursor() as cursor:
        for table in ledger_tables():
            cursor.execute(
                "SELECT pg_restore_relation_stats('schemaname', 'public', 'relname', %s,"
                " 'relpages', 40::int, 'reltuples', 0::real, 'relallvisible', 0::int)",
                [table],
            )
    yield
    with connection.cursor() as cursor:
        for table in ledger_tables():
            cursor.execute("SELECT pg_clear_relation_stats('public', %s)", [table])


def test_no_batch_is_larger_than_lago_takes_whatever_postgresql_believes(world, taken_for_empty):
    """What is found with LIMIT is found once, not anew for each row that it is joined with."""
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    for number in range(250):
        world.session("TAG-ALICE", f"CP-{number}", energy_wh=1_000 + number)
    run = world.sync(delivery_concurrency=2)
    assert (run.status, run.counts["confirmed"]) == ("completed", 250)
    assert world.lago_wh() == sum(1_000 + number for number in range(250))
    world.assert_conserved()
