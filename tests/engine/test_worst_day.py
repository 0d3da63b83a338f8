"""The worst days, with the real processes: what the operator sees and does, and that nothing is lost or doubled."""

from __future__ import annotations

import json
import socket
import sys
from datetime import UTC, datetime, timedelta
from urllib.request import urlopen

import pytest

from ocpp_billing import clock
from ocpp_billing.billing import review
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.simulators.server import Fault
from ocpp_billing.sync.models import SyncRun
from ocpp_billing.sync.triggers import request_run
from tests.engine import processes, shifted
from tests.engine.processes import eventually, run_command, running, test_database_url
from tests.world import back_up_ledger, restore_ledger

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
NEVER = "0 0 29 2 *"  # at the soonest in four years' time


@pytest.fixture
def now():
    """Processes of their own have the machine's clock."""
    return datetime.now(UTC)


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def settings_of(world, **more):
    quiet = {"SYNC_CRON_SCHEDULE": NEVER, "SYNC_WATCH_SECONDS": "0", "LOG_LEVEL": "info"}
    return world.environment() | quiet | {"DATABASE_URL": test_database_url()} | more


def run_now(worker):
    """One full run of the worker."""
    asked = request_run("main", trigger="manual", requested_by="test")
    runs = SyncRun.objects.filter(pk=asked.run_id, ended_at__isnull=False)
    return eventually(runs.first, worker.said)


# -- our database was restored, and nobody stopped the worker ------------------------------------------------


def test_adopting_beside_a_worker_that_works_is_safe(live, tmp_path):
    world = live
    kept = world.session("TAG-ALICE", "CP-1", energy_wh=1_000)
    world.sync()
    backup = back_up_ledger()
    forgotten = world.session("TAG-BOB", "CP-2", energy_wh=2_000)
    world.sync()
    new = world.session("TAG-ALICE", "CP-1", energy_wh=70)
    billed = world.lago_events()
    restore_ledger(backup)

    settings = settings_of(world, SYNC_WATCH_SECONDS="1")
    with running("worker", settings=settings, log=tmp_path / "log") as worker:
        worker.says("worker leads")
        run = run_now(worker)
        assert (run.status, run.delivery) == ("failed", "paused")  # it has noticed by itself
        assert "ocpp-billing adopt" in str(run.errors)
        assert world.lago_events() == billed
        world.stop(world.start("TAG-BOB", "CP-3", at=HOUR), "CP-3", at=MINUTE, meter_wh=1_008)

        adopted = run_command("adopt", settings=settings)
        assert adopted.returncode == 0, adopted.stderr
        assert "2 events of this source in Lago: 1 adopted, 0 in conflict" in adopted.stdout
        assert "Delivery goes on" in adopted.stdout
        run_now(worker)
        eventually(lambda: len(world.lago_events()) == 4, worker.said)
        run_now(worker)
        assert worker.terminate() == 0
    assert sum(world.lago_wh_by_session().values()) == 1_000 + 2_000 + 70 + 8
    assert {kept: 1_000, forgotten: 2_000, new: 70}.items() <= world.lago_wh_by_session().items()
    world.assert_conserved()


# -- the end of the month: Lago is down over midnight, and StEvE comes back from yesterday's backup ---------


@pytest.fixture
def last_evening(world, tmp_path, monkeypatch):
    """Eight in the evening on the last day of a month; moves the clock of all processes."""
    file = tmp_path / "ahead"
    monkeypatch.setenv(shifted.FILE, str(file))
    monkeypatch.setattr(processes, "COMMAND", [sys.executable, "-m", "tests.engine.shifted"])

    def move(instant):
        written = file.with_suffix(".new")
        written.write_text(str((instant - datetime.now(UTC)).total_seconds()))
        written.replace(file)  # nobody reads half of it

    started = datetime.now(UTC)
    first = (started.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0)
    midnight = first.replace(microsecond=0)
    if midnight - started < timedelta(days=1):
        midnight = (midnight + timedelta(days=32)).replace(day=1)
    move(midnight - 4 * HOUR)
    monkeypatch.setattr(world.clock, "now", shifted.now)
    clock.install_clock(shifted.now)
    world.begins_at = (midnight - timedelta(days=1)).replace(day=1)
    world.payer("TAG-ALICE", "alice", billing_time="calendar")
    world.payer("TAG-BOB", "bob", billing_time="calendar")
    world.go_live()
    return midnight, move


@pytest.mark.long
def test_lago_down_over_the_end_of_the_month_and_steve_restored(world, last_evening, tmp_path, port):
    midnight, move = last_evening
    before = world.session("TAG-ALICE", "CP-1", energy_wh=1_000)
    settings = settings_of(world)
    web_settings = settings | {"AUTH_SECRET": "s" * 32}
    with (
        running("worker", settings=settings, log=tmp_path / "worker") as worker,
        running("web", "--port", str(port), settings=web_settings, log=tmp_path / "web") as web,
    ):
        worker.says("worker leads")

        def ready():
            with urlopen(f"http://localhost:{port}/readyz", timeout=10) as answer:
                return json.loads(answer.read())

        assert run_now(worker).status == "completed"
        world.steve.snapshot()  # StEvE's backup of the day
        after_backup = world.session("TAG-ALICE", "CP-1", energy_wh=2_000)
        run_now(worker)
        assert world.lago_wh() == 3_000

        move(midnight - HOUR)
        world.lago.add_fault(Fault("status", status=503, times=-1))
        waiting = world.session("TAG-ALICE", "CP-1", start=HOUR, stop=HOUR / 2, energy_wh=400)
        assert run_now(worker).status == "failed"
        assert world.state_of(waiting) == ("held", "undecided")  # who pays has to be asked of Lago

        move(midnight - HOUR / 4)
        world.steve.restore()
        again = [
            world.session("TAG-BOB", "CP-2", start=m * MINUTE, stop=(m - 1) * MINUTE, energy_wh=500)
            for m in (9, 7)
        ]
        assert again == [after_backup, waiting]  # the same numbers, other sessions
        run = run_now(worker)
        assert (run.status, run.delivery) == ("failed", "paused")

        # What the operator sees at one in the morning, Lago still being down.
        move(midnight + HOUR)
        run_now(worker)
        seen = run_command("doctor", "--json", settings=settings)
        findings = {each["code"]: each for each in json.loads(seen.stdout)["findings"]}
        assert "restored from a backup" in findings["paused"]["says"]
        assert "503" in seen.stdout
        worker.says("delivery_paused")
        assert ready()["worker"]["alive"]
        assert ready()["balance"]["unexplained"] == {"sessions": 0, "energy_wh": 0}

        # Lago is back, its invoices are cut, and he resumes.
        move(midnight + 9 * HOUR)
        world.lago.clear_faults()
        world.lago.run_billing()
        assert run_command("resume", settings=settings).returncode == 0
        for _ in range(2):
            run_now(worker)
        assert world.lago_wh() == 3_000  # nothing is sent into a period that is closed
        late = ChargingSession.objects.filter(state="held", reason="late_period")
        assert late.count() == 3  # the one that waited, and both of the restored StEvE
        for session in late:
            review.accept(session.pk, note="bill it in the new month", by="test")
        for _ in range(2):
            assert run_now(worker).status == "completed"
        assert web.process.poll() is None
        assert worker.terminate() == 0
    assert world.lago_wh("sub-alice") == 3_400
    assert world.lago_wh("sub-bob") == 1_000
    assert len(world.lago_events()) == 5
    assert {entry["state"] for entry in world.lago.ledger()} == {"invoiced", "open"}
    assert world.billed_wh(before) == 1_000
    balance = world.balance()
    assert balance.states["confirmed"].sessions == 5
    assert balance.unexplained.sessions == 0
    assert "Traceback" not in worker.said() + web.said()
