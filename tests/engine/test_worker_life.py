"""The worker as a real process under real signals: frozen, killed, stopped, cut off from its database."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.test import Client

from ocpp_billing.accounts.models import Role
from ocpp_billing.alerts.webhook import sign
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.local_time import day_and_time
from ocpp_billing.portal import live as live_page
from ocpp_billing.simulators.server import Fault
from ocpp_billing.sync.models import SyncRun, WorkerHeartbeat
from ocpp_billing.sync.triggers import request_run
from tests.engine import processes
from tests.engine.processes import eventually, running, test_database_url
from tests.engine.test_alerts import mail_server, receiver
from tests.portal.conftest import BACKEND, add_person
from tests.world import forget_people

NEVER = "0 0 29 2 *"  # at the soonest in four years' time


@pytest.fixture
def now():
    """Processes of their own have the machine's clock."""
    return datetime.now(UTC)


@pytest.fixture
def live(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    return world


@pytest.fixture
def settings(live):
    quiet = {"SYNC_CRON_SCHEDULE": NEVER, "SYNC_WATCH_SECONDS": "0", "LOG_LEVEL": "info"}
    return live.environment() | quiet | {"DATABASE_URL": test_database_url()}


@pytest.fixture
def impatient(monkeypatch):
    """Standbys wait two seconds for a frozen leader instead of thirty."""
    monkeypatch.setattr(processes, "COMMAND", [sys.executable, "-m", "tests.engine.impatient"])


def trigger():
    return request_run("main", trigger="manual", requested_by="test")


def ended(run_id):
    return SyncRun.objects.filter(pk=run_id).exclude(status__in=["requested", "running"]).first()


def leader():
    return WorkerHeartbeat.objects.filter(leader=True).first()


def leads(worker):
    return (row := leader()) is not None and row.worker.split(":")[1] == str(worker.pid)


def live_mark():
    return live_page.current_mark("main")


def batches(live):
    return len([path for path in live.posts() if path.endswith("/batch")])


def leases():
    return UsageEvent.objects.exclude(lease=None).count()


class TestTriggers:
    def test_a_thousand_triggers_in_a_storm_bring_two_runs_at_most(self, live, settings, tmp_path):
        live.session("TAG-ALICE", energy_wh=6_000)
        live.lago.add_fault(Fault("slow", path="/organizations", seconds=12))  # longer than any storm
        with running("worker", settings=settings, log=tmp_path / "log") as worker:
            worker.says("worker leads")

            def storm():
                for _ in range(250):
                    trigger()
                connection.close()

            threads = [threading.Thread(target=storm) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert (
                SyncRun.objects.filter(status="running").count() == 1
            )  # the storm is over before the run is
            eventually(lambda: not SyncRun.objects.filter(ended_at=None).exists(), worker.said)
            assert worker.terminate() == 0
        # The run at the start is nobody's trigger: it may come before, between or after theirs.
        assert SyncRun.objects.filter(trigger="manual").count() <= 2
        assert SyncRun.objects.exclude(status="completed").count() == 0
        assert live.lago_wh() == 6_000
        live.assert_conserved()

    def test_a_trigger_is_told_which_of_the_three_will_happen(self, live, settings, tmp_path):
        assert trigger().says == (
            "No worker is alive. The synchronization is noted and starts when one comes."
        )
        live.lago.add_fault(Fault("slow", path="/organizations", seconds=1.5))
        with running("worker", settings=settings, log=tmp_path / "log") as worker:
            first = eventually(lambda: SyncRun.objects.filter(status="running").first(), worker.said)
            behind = trigger()
            assert (behind.status, behind.says) == (
                "queued behind",
                f"The synchronization starts when run {first.pk} has ended.",
            )
            assert trigger().run_id == behind.run_id  # one waits, and only one
            eventually(lambda: ended(behind.run_id), worker.said)
            assert trigger().status == "starts now"
            assert worker.terminate() == 0
        since = day_and_time(WorkerHeartbeat.objects.get().stopped_at)
        assert trigger().says.startswith(f"No worker is alive since {since}.")


class TestTheDocuments:
    """What SYNC-TRIGGER.md gives to type."""

    def statements(self):
        text = (Path(__file__).parents[2] / "docs" / "SYNC-TRIGGER.md").read_text(encoding="utf-8")
        return re.findall(r"```sql\n(.*?)```", text, re.DOTALL)

    def test_the_sql_triggers_a_worker_and_shows_that_it_is_alive(self, live, settings, tmp_path):
        begin, alive = self.statements()
        with running("worker", settings=settings, log=tmp_path / "log") as worker:
            worker.says("worker leads")
            with psycopg.connect(test_database_url(), autocommit=True) as other:
                ((name, leads, _, _),) = other.execute(alive).fetchall()
                assert (name.split(":")[1], leads) == (str(worker.pid), True)
                for statement in begin.strip().split(";\n"):
                    other.execute(statement)
            run = eventually(lambda: SyncRun.objects.exclude(ended_at=None).first(), worker.said)
            assert (run.trigger, run.requested_by) == ("manual", "nightly export")
            assert run.started_at - run.requested_at < timedelta(seconds=1)
            assert worker.terminate() == 0
            with psycopg.connect(test_database_url()) as other:
                assert other.execute(alive).fetchall() == []


@pytest.mark.usefixtures("impatient")
class TestAFrozenLeader:
    """Row 42: the leader is stopped with SIGSTOP and woken up minutes later."""

    def test_the_standby_takes_over_and_the_woken_one_does_nothing_more(self, live, settings, tmp_path):
        live.session("TAG-ALICE", energy_wh=6_000)
        settings["LAGO_READ_TIMEOUT_SECONDS"] = "5"
        with (
            running("worker", settings=settings, log=tmp_path / "first") as first,
            running("worker", settings=settings, log=tmp_path / "second") as second,
        ):
            eventually(leader)
            frozen, standby = (first, second) if leads(first) else (second, first)
            standby.says("worker stands by")
            live.lago.add_fault(Fault("hang", path="/events/batch", seconds=60))
            requested = trigger()
            eventually(lambda: batches(live) == 1, frozen.said)
            os.kill(frozen.pid, signal.SIGSTOP)

            standby.says("frozen leader ended")
            recovery = eventually(lambda: SyncRun.objects.filter(trigger="recovery").first(), standby.said)
            assert eventually(lambda: ended(recovery.pk), standby.said).status == "completed"
            assert SyncRun.objects.get(pk=requested.run_id).status == "interrupted"
            assert live.lago_wh() == 6_000
            runs, sent = SyncRun.objects.count(), batches(live)

            live.lago.faults.clear()
            os.kill(frozen.pid, signal.SIGCONT)
            # It finds its connections gone, and stands by like any other.
            eventually(lambda: frozen.said().count("worker stands by") == 1, frozen.said)
            assert leads(standby)
            assert (SyncRun.objects.count(), batches(live)) == (runs, sent)

            live.session("TAG-ALICE", energy_wh=500)
            assert standby.terminate() == 0
            eventually(lambda: leads(frozen), frozen.said)  # and is of use again
            requested = trigger()
            eventually(lambda: ended(requested.run_id), frozen.said)
            assert frozen.terminate() == 0
        assert live.lago_wh() == 6_500
        assert SyncRun.objects.filter(trigger="recovery").count() == 1
        live.assert_conserved()

    def test_a_healthy_leader_is_left_alone(self, settings, live, tmp_path):
        with running("worker", settings=settings, log=tmp_path / "first") as first:
            first.says("worker leads")
            with running("worker", settings=settings, log=tmp_path / "second") as second:
                second.says("worker stands by")
                live.lago.add_fault(Fault("slow", path="/organizations", seconds=4))
                requested = trigger()  # a run that is longer than the standby's patience
                assert eventually(lambda: ended(requested.run_id), first.said).status == "completed"
                assert leads(first)
                assert second.terminate() == 0
            assert first.terminate() == 0
        assert "frozen" not in second.said()


class TestTheDatabaseGoesAway:
    def test_a_restart_in_the_middle_of_a_run_is_waited_out_and_made_good(self, live, settings, tmp_path):
        live.session("TAG-ALICE", energy_wh=6_000)
        live.lago.add_fault(Fault("slow", path="/events/batch", seconds=1.5))
        requested = trigger()
        with running("worker", settings=settings, log=tmp_path / "log") as worker:
            eventually(lambda: batches(live) == 1, worker.said)
            end_all_connections()
            worker.says("database away")
            recovery = eventually(lambda: SyncRun.objects.filter(trigger="recovery").first(), worker.said)
            assert eventually(lambda: ended(recovery.pk), worker.said).status == "completed"
            assert SyncRun.objects.get(pk=requested.run_id).status == "interrupted"
            eventually(lambda: UsageEvent.objects.get().state == "confirmed", worker.said)
            assert worker.terminate() == 0
        assert live.lago_wh() == 6_000
        live.assert_conserved()

    def test_an_idle_worker_leads_again(self, live, settings, tmp_path):
        with running("worker", settings=settings, log=tmp_path / "log") as worker:
            worker.says("worker leads")
            end_all_connections()
            eventually(lambda: worker.said().count("worker leads") == 2, worker.said)
            requested = trigger()
            assert eventually(lambda: ended(requested.run_id), worker.said).status == "completed"
            assert worker.terminate() == 0


class TestSeenFromOutside:
    @pytest.fixture
    def dashboard(self, live, monkeypatch):
        """The dashboard of a web process, so long from now."""
        monkeypatch.setattr(django_settings, "CONFIG", live.config())
        client = Client()
        client.force_login(add_person(Role.VIEWER), backend=BACKEND)

        def show(later=timedelta()):
            live.clock.set(datetime.now(UTC) + later)
            return client.get("/").content.decode()

        yield show
        forget_people()

    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
    def test_a_worker_that_is_gone_is_on_the_dashboard_within_half_a_minute(
        self, live, settings, tmp_path, dashboard, end
    ):
        with running("worker", settings=settings, log=tmp_path / "log") as worker:
            worker.says("worker leads")
            assert "The worker is silent" not in dashboard()
            before = live_mark()
            os.kill(worker.pid, end)
            gone = dashboard(timedelta(seconds=30) - timedelta(seconds=live_page.POLL_S))
            assert "The worker is silent" in gone
            assert "ocpp-billing worker" in gone  # and what to do
            # A page that is open asks the database what time it is.
            WorkerHeartbeat.objects.update(seen_at=datetime.now(UTC) - timedelta(seconds=26))
            assert live_mark() != before


class TestAlertsOfARealWorker:
    @pytest.mark.usefixtures("impatient")
    def test_an_outage_is_told_once_when_it_begins_and_once_when_it_is_over_on_every_channel(
        self, live, settings, tmp_path
    ):
        secret = "s" * 40
        with receiver() as (hook, url), mail_server() as mail:
            settings |= {
                "ALERT_OUTAGE_MINUTES": "0",
                "ALERT_WEBHOOK_URL": url,
                "ALERT_WEBHOOK_SECRET": secret,
                "ALERT_EMAIL_TO": "ops@example.org",
                "EMAIL_HOST": "127.0.0.1",
                "EMAIL_PORT": str(mail.server_address[1]),
                "EMAIL_SECURITY": "none",
                "EMAIL_FROM": "billing@example.org",
            }
            live.session("TAG-ALICE", energy_wh=6_000)
            live.lago.add_fault(Fault("status", status=503, times=-1))
            with running("worker", settings=settings, log=tmp_path / "log") as worker:
                worker.says("worker leads")
                for _ in range(3):
                    run = trigger()
                    eventually(lambda run=run: ended(run.run_id), worker.said)
                eventually(lambda: hook.received and mail.messages, worker.said)
                live.lago.clear_faults()
                run = trigger()
                eventually(lambda: ended(run.run_id), worker.said)
                eventually(lambda: len(hook.received) == len(mail.messages) == 2, worker.said)
                assert worker.terminate() == 0
            for _, headers, body in hook.received:
                signed = sign(secret.encode(), headers["OCPP-Billing-Timestamp"], body)
                assert headers["OCPP-Billing-Signature"] == signed
            told = [json.loads(body) for _, _, body in hook.received]
        assert [(each["alert"], each["state"]) for each in told] == [
            ("lago_failing", "open"),
            ("lago_failing", "resolved"),
        ]
        assert "ocpp-billing doctor" in told[0]["do"]
        assert worker.said().count("action=alert.opened") == worker.said().count("action=alert.resolved") == 1


class TestSigterm:
    @pytest.fixture
    def under_way(self, live, settings, tmp_path):
        """A worker with a batch under way that Lago answers after so many seconds."""

        def start(seconds):
            live.session("TAG-ALICE", energy_wh=6_000)
            live.lago.add_fault(
                Fault("hang" if seconds > 10 else "slow", path="/events/batch", seconds=seconds)
            )
            requested = trigger()
            worker = opened.enter_context(running("worker", settings=settings, log=tmp_path / "log"))
            eventually(lambda: batches(live) == 1, worker.said)
            return worker, requested.run_id

        from contextlib import ExitStack

        with ExitStack() as opened:
            yield start

    def test_a_batch_that_is_answered_in_time_is_written_down(self, live, under_way):
        worker, run_id = under_way(1.5)
        assert worker.terminate() == 0
        assert UsageEvent.objects.get().state == "accepted"
        assert leases() == 0
        run = SyncRun.objects.get(pk=run_id)
        assert run.status == "interrupted"
        assert run.errors[-1]["error"] == (
            "The worker was told to stop in the middle; the next run completes it."
        )
        assert WorkerHeartbeat.objects.get().stopped_at is not None

    def test_a_batch_that_is_not_is_handed_back_within_ten_seconds(self, live, settings, under_way, tmp_path):
        worker, run_id = under_way(60)
        began = time.monotonic()
        assert worker.terminate() == 0
        assert time.monotonic() - began < 10
        assert UsageEvent.objects.get().state == "queued"
        assert leases() == 0
        assert SyncRun.objects.get(pk=run_id).status == "interrupted"
        live.lago.faults.clear()
        with running("worker", settings=settings, log=tmp_path / "next") as successor:
            recovery = SyncRun.objects.filter(trigger="recovery")
            eventually(lambda: recovery.filter(status="completed").exists(), successor.said)
            eventually(lambda: UsageEvent.objects.get().state == "confirmed", successor.said)
            assert successor.terminate() == 0
        assert live.lago_wh() == 6_000
        live.assert_conserved()

    def test_the_second_one_ends_it_at_once_and_not_cleanly(self, live, under_way):
        worker, run_id = under_way(60)
        worker.process.terminate()
        time.sleep(0.3)
        began = time.monotonic()
        assert worker.terminate() == 128 + signal.SIGTERM
        assert time.monotonic() - began < 2
        assert SyncRun.objects.get(pk=run_id).status == "running"  # the next leader ends it

    def test_an_idle_worker_ends_at_once(self, live, settings, tmp_path):
        with running("worker", settings=settings, log=tmp_path / "log") as worker:
            worker.says("worker leads")
            began = time.monotonic()
            assert worker.terminate() == 0
            assert time.monotonic() - began < 2


def end_all_connections():
    """What a restart of the database does to everybody but this test."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
