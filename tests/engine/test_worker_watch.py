"""Between two full runs: a stop is billed within seconds, and what becomes due is done, on every release."""

from __future__ import annotations

import signal
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.simulators.server import Fault
from ocpp_billing.simulators.steve_store import Sample
from ocpp_billing.sync.models import Alert, SyncRun, WorkerHeartbeat
from ocpp_billing.sync.triggers import request_run
from ocpp_billing.sync.worker import Worker
from tests.engine.processes import eventually, running, test_database_url

NEVER = "0 0 29 2 *"  # at the soonest in four years' time


def ended(run_id):
    return SyncRun.objects.filter(pk=run_id).exclude(status__in=["requested", "running"]).first()


def triggers():
    return list(SyncRun.objects.order_by("id").values_list("trigger", flat=True))


def event_of(steve_id):
    return UsageEvent.objects.filter(session__steve_id=steve_id).first()


class TestARealWorkerThatWatches:
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
    def watching(self, live, tmp_path):
        settings = {"SYNC_CRON_SCHEDULE": NEVER, "SYNC_WATCH_SECONDS": "1", "LOG_LEVEL": "info"}
        settings |= live.environment() | {"DATABASE_URL": test_database_url()}
        settings |= {"CONFIRM_SETTLE_SECONDS": "0"}
        first = request_run("main", trigger="manual", requested_by="test")
        with running("worker", settings=settings, log=tmp_path / "log") as worker:
            eventually(lambda: ended(first.run_id), worker.said)
            yield worker
            assert worker.terminate() == 0

    @pytest.mark.parametrize("release", ["3.7", "3.9", "3.11", "3.14"])
    def test_a_car_is_unplugged_and_billed_without_a_schedule(self, live, watching):
        steve_id = live.start("TAG-ALICE", at=timedelta(minutes=40), meter_wh=1_000)
        # One that begins is seen ...
        eventually(lambda: ChargingSession.objects.filter(steve_id=steve_id).exists(), watching.said)
        runs = SyncRun.objects.count()
        ticks(live, 3)
        assert SyncRun.objects.count() == runs  # ... and nothing is written while it goes on,
        live.stop(steve_id, at=timedelta(), meter_wh=8_000)
        stopped_s = time.monotonic()
        # until it ends.
        eventually(lambda: (event := event_of(steve_id)) and event.state == "confirmed", watching.said)
        assert time.monotonic() - stopped_s < 6
        assert set(triggers()[1:]) == {"watch"}
        assert live.lago_wh() == 7_000
        live.assert_conserved()

    @pytest.mark.parametrize("release", ["3.12", "3.14"])
    def test_an_operator_closes_a_session_and_it_is_judged_and_billed_without_a_schedule(
        self, live, watching
    ):
        steve_id = live.start("TAG-ALICE", at=timedelta(minutes=40), meter_wh=1_000)
        live.steve.meter_values("CP-1", 1, [Sample(live.at(timedelta(minutes=10)), "8000")], steve_id)
        eventually(lambda: ChargingSession.objects.filter(steve_id=steve_id).exists(), watching.said)
        live.steve.manual_stop(steve_id)
        eventually(lambda: (event := event_of(steve_id)) and event.state == "confirmed", watching.said)
        assert ChargingSession.objects.get().evidence["source"] == "meter_value"
        assert set(triggers()[1:]) == {"watch"}
        assert live.lago_wh() == 7_000
        live.assert_conserved()

    @pytest.mark.parametrize("release", ["3.7", "3.14"])
    def test_an_idle_look_is_one_cheap_call_and_leaves_no_trace(self, live, watching):
        runs = SyncRun.objects.count()
        asked = ticks(live, 3)
        assert len(asked) <= 4
        assert all("/transactions" in path and "transactionPk=" in path for path in asked)
        assert SyncRun.objects.count() == runs

    def test_another_steve_at_the_same_address_is_not_billed(self, live, watching):
        for _ in range(3):
            live.session("TAG-ALICE", energy_wh=1_000)
        eventually(lambda: live.lago_wh() == 3_000, watching.said)
        eventually(lambda: not UsageEvent.objects.exclude(state="confirmed").exists(), watching.said)
        live.steve.reset()
        for _ in range(5):
            live.session("TAG-ALICE", box="CP-9", energy_wh=9_000)
        watching.says("the last known sessions are not there any more")
        recovery = eventually(lambda: SyncRun.objects.filter(trigger="recovery").first(), watching.said)
        assert eventually(lambda: ended(recovery.pk), watching.said).status == "failed"
        assert live.lago_wh() == 3_000


def ticks(live, number):
    """Let the watch lane look so many times; returns what StEvE was asked meanwhile."""
    before = len(live.steve.requests)
    eventually(lambda: len(live.steve.requests) >= before + number)
    return [request["path"] for request in live.steve.requests[before:]]


class TestOutages:
    """An hour without one of the two systems, on the world's clock."""

    @pytest.fixture
    def serve(self, world):
        """Let a worker of this process work while ``meanwhile`` runs beside it."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def serve(meanwhile, **settings):
            worker = Worker(
                world.config(sync_watch_seconds=15, sync_cron_schedule="*/15 * * * *", **settings)
            )
            failure = []

            def beside():
                try:
                    eventually(lambda: WorkerHeartbeat.objects.filter(leader=True).exists())
                    meanwhile()
                except BaseException as error:  # noqa: BLE001 - raised again in the thread of the test
                    failure.append(error)
                finally:
                    worker.stopping.set()
                    connection.close()

            thread = threading.Thread(target=beside)
            thread.start()
            worker.run()
            thread.join()
            if failure:
                raise failure[0]

        yield serve
        for number, handler in handlers.items():
            signal.signal(number, handler)

    @staticmethod
    def let_pass(world, minutes):
        """Time passes in steps of half a minute, as fast as the worker keeps up."""
        for _ in range(2 * minutes):
            world.clock.advance(seconds=30)
            time.sleep(0.06)

    def test_lago_is_down_for_an_hour_and_everything_is_delivered_when_it_is_back(
        self, world, serve, monkeypatch
    ):
        monkeypatch.setattr("ocpp_billing.alerts.watchman.LOOKS_SOONEST_S", 0.2)
        world.payer("TAG-ALICE", "alice")
        world.go_live()
        world.session("TAG-ALICE", energy_wh=6_000)

        def meanwhile():
            request_run("main", trigger="manual", requested_by="test")
            world.lago.add_fault(Fault("status", status=503, times=-1))
            self.let_pass(world, 30)
            world.session("TAG-ALICE", energy_wh=500)
            self.let_pass(world, 30)
            assert UsageEvent.objects.exclude(state="queued").count() == 0
            attempts = len(world.posts())
            assert attempts < 40  # it does not hammer a Lago that is down
            alert = eventually(lambda: Alert.objects.filter(condition="lago_failing").first())
            assert "503" in alert.says
            world.lago.clear_faults()
            # The longest back-off, not the schedule alone, is what it waits for.
            self.let_pass(world, 20)
            eventually(lambda: world.lago_wh() == 6_500)
            eventually(lambda: UsageEvent.objects.filter(state="confirmed").count() == 2)
            eventually(lambda: Alert.objects.get(pk=alert.pk).resolved_at)

        serve(meanwhile)
        world.assert_conserved()

    def test_steve_is_down_for_an_hour_and_is_read_in_full_when_it_is_back(self, world, serve):
        world.payer("TAG-ALICE", "alice")
        world.go_live()
        world.session("TAG-ALICE", energy_wh=6_000)

        def meanwhile():
            first = request_run("main", trigger="manual", requested_by="test")
            eventually(lambda: ended(first.run_id))
            world.steve.add_fault(Fault("status", status=502, times=-1))
            self.let_pass(world, 61)
            failed = SyncRun.objects.filter(trigger="schedule", status="failed")
            eventually(lambda: failed.filter(started_at__hour=13).exists())
            calls = len(world.steve.requests)
            assert calls < 100
            world.session("TAG-ALICE", energy_wh=500)
            world.steve.clear_faults()
            self.let_pass(world, 8)
            eventually(lambda: world.lago_wh() == 6_500)

        serve(meanwhile)
        assert "recovery" in triggers()
        world.assert_conserved()

    def test_what_lago_accepted_is_confirmed_when_it_has_settled_not_on_schedule(self, world, serve):
        world.payer("TAG-ALICE", "alice")
        world.go_live()
        world.session("TAG-ALICE", energy_wh=6_000)

        def meanwhile():
            first = request_run("main", trigger="manual", requested_by="test")
            eventually(lambda: ended(first.run_id))
            assert UsageEvent.objects.get().state == "accepted"
            world.clock.advance(seconds=59)
            time.sleep(1.5)
            assert UsageEvent.objects.get().state == "accepted"
            world.clock.advance(seconds=2)
            eventually(lambda: UsageEvent.objects.get().state == "confirmed")

        serve(meanwhile, confirm_settle_seconds=60)
        assert triggers() == ["manual", "confirm"]
        world.assert_conserved()

    def test_what_was_paused_is_sent_soon_after_it_was_resumed(self, world, serve):
        world.payer("TAG-ALICE", "alice")
        world.go_live()
        world.pause()
        world.session("TAG-ALICE", energy_wh=6_000)

        def meanwhile():
            first = request_run("main", trigger="manual", requested_by="test")
            eventually(lambda: ended(first.run_id))
            assert world.lago_wh() == 0
            world.resume()
            eventually(lambda: world.lago_wh() == 6_000)

        serve(meanwhile)
        assert "delivery" in triggers()
        world.assert_conserved()
