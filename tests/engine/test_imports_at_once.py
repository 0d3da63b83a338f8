"""Mappings are imported while others import them, too, or decide about the same sessions."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.db import connection, transaction

from ocpp_billing.accounts.models import AuditEntry
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.mappings.csv import import_mappings
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.mappings.store import create_mapping
from tests.engine.processes import eventually
from tests.engine.threads import Threads, waits_for_a_lock

LINES = [
    "id_tag,customer_id,valid_from\n",
    "TAG-BOB,bob,2026-01-01\n",
    "TAG-ALICE,alice,2026-01-01\n",
    "TAG-CAROL,carol,2026-01-01\n",
]
WITHIN_S = 30


class Imports:
    """Imports in threads of their own, and what they reported."""

    def __init__(self):
        self.threads = Threads()
        self.reports = []

    def begin(self, lines, *, dry_run=False):
        def run():
            report = import_mappings(lines, source="main", zone=ZoneInfo("UTC"), by="test", dry_run=dry_run)
            self.reports.append([line.outcome for line in report.lines])

        self.threads.start(run)


@pytest.fixture
def imports(engine_database):
    return Imports()


def test_the_same_file_twice_at_once_makes_each_mapping_once(imports):
    go_on = threading.Event()

    def slowly():
        yield from LINES[:3]
        go_on.wait(WITHIN_S)
        yield from LINES[3:]

    imports.begin(slowly())
    eventually(lambda: in_transaction("INSERT") or in_transaction("RELEASE"))
    imports.begin([LINES[0], *reversed(LINES[1:])])  # in another order: crosswise
    eventually(waits_for_a_lock)
    go_on.set()
    imports.threads.join()
    assert imports.reports == [["created"] * 3, ["unchanged"] * 3]
    assert TagMapping.objects.count() == 3
    assert AuditEntry.objects.filter(action="mapping.create").count() == 3


def in_transaction(beginning):
    """Whether another connection has an open transaction, and such a statement was its last."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database()"
            " AND state = 'idle in transaction' AND query LIKE %s",
            [f"{beginning}%"],
        )
        return cursor.fetchone()[0]


def test_a_line_that_somebody_else_writes_meanwhile_is_unchanged(imports):
    with transaction.atomic():
        create_mapping(
            source="main",
            id_tag="TAG-BOB",
            customer="bob",
            subscription=None,
            valid_from=datetime(2026, 1, 1, tzinfo=UTC),
            by="test",
        )
        imports.begin(LINES)
        eventually(waits_for_a_lock)
    imports.threads.join()
    assert imports.reports == [["unchanged", "created", "created"]]
    assert TagMapping.objects.count() == 3


def test_an_import_and_a_decision_do_not_wait_for_each_other_in_a_ring(world):
    for number, tag in enumerate(["TAG-ALICE", "TAG-BOB", "TAG-CAROL"]):
        world.customer(tag.removeprefix("TAG-").lower(), since=world.clock.now() - timedelta(days=60))
        world.session(tag, f"CP-{number}", energy_wh=1_000)
    world.go_live()
    world.sync()
    imports = Imports()
    with transaction.atomic():  # as a decision: in the order of the ledger's numbers
        for session in ChargingSession.objects.order_by("id")[:3]:
            ChargingSession.objects.select_for_update().get(pk=session.pk)
            if not imports.threads.threads:
                imports.begin(LINES)
                eventually(waits_for_a_lock)
    imports.threads.join()
    assert imports.reports == [["created"] * 3]
    world.sync()
    assert world.balance().states["confirmed"].sessions == 3
    world.assert_conserved()
