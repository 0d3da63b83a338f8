"""The worker: on trigger, on schedule, one leader, a standby, and the end of both."""

from __future__ import annotations

import json
import signal
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.db import connection

from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.simulators.server import Fault
from ocpp_billing.sync.models import SyncLog, SyncRun, WorkerHeartbeat
from ocpp_billing.sync.schedule import next_scheduled
from ocpp_billing.sync.triggers import request_run
from ocpp_billing.sync.worker import Worker
from tests.engine.processes import eventually, run_command, running, test_database_url

BERLIN = ZoneInfo("Europe/Berlin")


def trigger():
    return request_run("main", trigger="manual", requested_by="test")


def ended(run_id):
    return SyncRun.objects.filter(pk=run_id).exclude(status__in=["requested", "running"]).first()


class TestARealWorker:
    @pytest.fixture
    def now(self):
        """Processes of their own have the machine's clock."""
        return datetime.now(UTC)

    @pytest.fixture
    def live(self, world):
        world.payer("TAG-ALICE", "alice")
        world.go_live()
        return world

    @pytest.fixture
    def settings(self, live):
        # On schedule it would run in four years' time at the soonest.
        rarely = {"SYNC_CRON_SCHEDULE": "0 0 29 2 *", "SYNC_WATCH_SECONDS": "0", "LOG_LEVEL": "info"}
        return live.environment() | rarely | {"DATABASE_URL": test_database_url()}

    def test_it_runs_when_triggered_and_ends_when_told_to(self, live, settings, tmp_path):
        live.session("TAG-ALICE", energy_wh=6_000)
        noted = trigger()  # before there is a worker
        assert noted.status == "no worker"
        with running("worker", settings=settings, log=tmp_path / "log") as worker:
            assert eventually(lambda: ended(noted.run_id), worker.said).status == "completed"
            assert live.lago_wh() == 6_000

            live.session("TAG-ALICE", energy_wh=500)
            asked_at = datetime.now(UTC)
            requested = trigger()
            assert requested.status == "starts now"
            run = eventually(lambda: ended(requested.run_id), worker.said)
            assert (run.status, run.trigger) == ("completed", "manual")
            assert run.started_at - asked_at < timedelta(seconds=2)  # by NOTIFY, not when it next looks
            assert live.lago_wh() == 6_500

            heartbeat = WorkerHeartbeat.objects.get()
            assert heartbeat.leader
            assert heartbeat.next_run_at.month == 2

            assert worker.terminate() == 0
        assert "worker stopped" in worker.said()
        assert "Traceback" not in worker.said()
        assert WorkerHeartbeat.objects.get().stopped_at is not None
        live.assert_conserved()

    def test_sync_beside_a_running_worker_triggers_it_and_follows(self, live, settings, tmp_path):
        live.session("TAG-ALICE", energy_wh=6_000)
        with running("worker", settings=settings, log=tmp_path / "log") as worker:
            worker.says("worker leads")
            done = run_command("sync", "--json", settings=settings)
            assert done.returncode == 0, done.stderr
            summary = json.loads(done.stdout)
            run = SyncRun.objects.get()
            assert (summary["run_id"], summary["status"], summary["accepted"]) == (run.pk, "completed", 1)
            assert run.worker.split(":")[1] == str(worker.pid)
            assert live.lago_wh() == 6_000

    def test_the_standby_takes_over_and_completes_what_a_killed_leader_had_begun(
        self, live, settings, tmp_path
    ):
        live.session("TAG-ALICE", energy_wh=6_000)
        live.lago.add_fault(Fault("hang", path="/events/batch", seconds=30))
        with ExitStack() as others, running("worker", settings=settings, log=tmp_path / "first") as first:
            first.says("worker leads")
            second = others.enter_context(running("worker", settings=settings, log=tmp_path / "second"))
            second.says("worker stands by")
            requested = trigger()
            eventually(lambda: "/api/v1/events/batch" in live.posts(), first.said)
            assert WorkerHeartbeat.objects.filter(leader=True).count() == 1
            first.kill()
            interrupted = eventually(lambda: ended(requested.run_id), second.said)
            assert interrupted.status == "interrupted"
            assert interrupted.errors[-1]["error"].startswith("The process ended in the middle")
            recovery = eventually(lambda: SyncRun.objects.filter(trigger="recovery").first(), second.said)
            eventually(lambda: ended(recovery.pk), second.said)
            eventually(lambda: UsageEvent.objects.get().state == "confirmed", second.said)
            assert second.terminate() == 0
        assert live.lago_wh() == 6_000
        live.assert_conserved()


class TestTheSchedule:
    @pytest.fixture
    def serve(self, world):
        """Let a worker of this process work, on the world's clock, until a condition holds."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def serve(until, meanwhile=lambda: None, **settings):
            worker = Worker(world.config(**settings))

            def watch():
                try:
                    meanwhile()
                    eventually(until)
                finally:
                    worker.stopping.set()
                    connection.close()

            watcher = threading.Thread(target=watch)
            watcher.start()
            worker.run()
            watcher.join()
            assert until()

        yield serve
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def test_runs_begin_when_the_schedule_says_so(self, world, serve):
        def a_run_of(minute):
            return SyncRun.objects.filter(started_at__minute=minute).exclude(ended_at=None).first()

        def time_passes():
            eventually(lambda: WorkerHeartbeat.objects.filter(next_run_at__minute=15).exists())
            world.clock.advance(minutes=14, seconds=59)
            assert not SyncRun.objects.exists()
            world.clock.advance(seconds=1)
            eventually(lambda: a_run_of(15))
            eventually(lambda: WorkerHeartbeat.objects.filter(next_run_at__minute=30).exists())
            world.clock.advance(minutes=15)

        serve(lambda: a_run_of(30), time_passes, sync_cron_schedule="*/15 * * * *")
        assert set(SyncRun.objects.values_list("trigger", flat=True)) == {"schedule"}
        assert SyncRun.objects.count() == 2
        assert WorkerHeartbeat.objects.get().stopped_at is not None

    @pytest.mark.parametrize(
        ("now", "due"),
        [
            # 02:30 comes twice in the one night (00:30 and 01:30 UTC), and not at all in the other.
            (datetime(2026, 10, 24, 23, tzinfo=UTC), "2026-10-25T00:30"),
            (datetime(2026, 3, 28, 23, tzinfo=UTC), "2026-03-29T01:00"),
        ],
        ids=["winter", "summer"],
    )
    def test_a_worker_runs_once_in_a_night_of_changing_clocks(self, world, serve, due):
        def the_night_passes():
            eventually(lambda: WorkerHeartbeat.objects.exclude(next_run_at=None).exists())
            for _ in range(8):
                world.clock.advance(minutes=30)
                time.sleep(1.1)  # a worker looks at its clock every second

        def is_over():
            return world.clock.now().hour == 3 and not SyncRun.objects.filter(ended_at=None).exists()

        serve(is_over, the_night_passes, sync_cron_schedule="30 2 * * *", sync_timezone="Europe/Berlin")
        (run,) = SyncRun.objects.all()
        assert (run.trigger, f"{run.requested_at:%Y-%m-%dT%H:%M}") == ("schedule", due)

    def test_it_runs_at_once_on_start_up_if_wanted(self, world, serve):
        def a_run():
            return SyncRun.objects.exclude(ended_at=None).first()

        serve(a_run, sync_on_startup=True)
        assert a_run().trigger == "startup"
        assert SyncLog.objects.filter(run=a_run()).exists()

    @pytest.mark.parametrize(
        ("schedule", "zone", "after", "expected"),
        [
            ("*/15 * * * *", "UTC", "2026-03-17T12:00:00+00:00", "2026-03-17T12:15:00+00:00"),
            ("*/15 * * * *", "UTC", "2026-12-31T23:50:00+00:00", "2027-01-01T00:00:00+00:00"),
            ("0 3 * * *", "Europe/Berlin", "2026-01-15T12:00:00+00:00", "2026-01-16T02:00:00+00:00"),
            ("0 3 * * *", "Europe/Berlin", "2026-07-15T12:00:00+00:00", "2026-07-16T01:00:00+00:00"),
            ("0 0 29 2 *", "UTC", "2026-03-01T00:00:00+00:00", "2028-02-29T00:00:00+00:00"),
        ],
    )
    def test_the_next_run_follows_the_zone_of_the_schedule(self, world, schedule, zone, after, expected):
        config = world.config(sync_cron_schedule=schedule, sync_timezone=zone)
        assert next_scheduled(config, datetime.fromisoformat(after)).isoformat() == expected

    @pytest.mark.parametrize("night", ["2026-03-28", "2026-10-24"], ids=["summer", "winter"])
    def test_every_quarter_comes_once_in_a_night_of_changing_clocks(self, world, night):
        config = world.config(sync_timezone="Europe/Berlin")
        at = datetime.fromisoformat(f"{night}T23:00:00+00:00")
        for _ in range(24):
            following = next_scheduled(config, at)
            assert following - at == timedelta(minutes=15)
            at = following

    @pytest.mark.parametrize(
        ("night", "hours"), [("2026-03-28", 23), ("2026-10-24", 25)], ids=["summer", "winter"]
    )
    def test_a_nightly_run_comes_once_in_a_night_of_changing_clocks(self, world, night, hours):
        config = world.config(sync_timezone="Europe/Berlin", sync_cron_schedule="30 2 * * *")
        evening = datetime.fromisoformat(f"{night}T21:00:00").replace(tzinfo=BERLIN).astimezone(UTC)
        runs = []
        at = evening
        while at < evening + timedelta(hours=hours):
            at = next_scheduled(config, at)
            runs.append(at)
        within_the_night = [run for run in runs if run < evening + timedelta(hours=hours)]
        assert len(within_the_night) == 1
