"""How long runs are kept, and whether a worker is alive."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ocpp_billing.charging.models import Source
from ocpp_billing.config import load_config
from ocpp_billing.sync.heartbeat import Heartbeat, LeadershipLostError, leader_transaction
from ocpp_billing.sync.liveness import SILENT_AFTER, worker_alive
from ocpp_billing.sync.models import (
    Alert,
    AlertMessage,
    SyncLog,
    SyncRun,
    SyncStep,
    WorkerHeartbeat,
    WorkerKind,
)
from ocpp_billing.sync.retention import ALWAYS_KEPT, prune

NOW = datetime(2026, 3, 17, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def source(engine_database):
    Source.objects.create(name="main")


def heartbeat(name="w", *, seen=timedelta(), **fields):
    fields = {"leader": True, "started_at": NOW - timedelta(hours=5)} | fields
    return WorkerHeartbeat.objects.create(worker=name, source_id="main", seen_at=NOW - seen, **fields)


class TestRetention:
    @staticmethod
    def runs(number, *, days, trigger="schedule"):
        ended = NOW - timedelta(days=days)
        made = SyncRun.objects.bulk_create(
            SyncRun(
                source_id="main",
                status="completed",
                trigger=trigger,
                requested_by="",
                requested_at=ended,
                ended_at=ended,
                counts={},
                errors=[],
            )
            for _ in range(number)
        )
        SyncStep.objects.bulk_create(
            SyncStep(run=run, name="decide", started_at=ended, counts={}) for run in made
        )
        SyncLog.objects.bulk_create(
            SyncLog(run=run, at=ended, level="info", action="a", message="m") for run in made
        )

    @staticmethod
    def prune(**settings):
        heartbeat()
        environ = {
            "OCPP_BILLING_ENV_FILE": "",
            **{name.upper(): str(value) for name, value in settings.items()},
        }
        return prune(load_config(environ), "w", NOW)

    def test_old_runs_go_with_their_steps_and_logs(self):
        self.runs(30, days=91)
        self.runs(ALWAYS_KEPT, days=89)
        assert self.prune() == 30
        assert SyncRun.objects.count() == SyncStep.objects.count() == SyncLog.objects.count() == ALWAYS_KEPT

    def test_the_newest_stay_however_old_they_are(self):
        self.runs(ALWAYS_KEPT + 3, days=2000)
        assert self.prune() == 3

    def test_short_runs_go_sooner(self):
        self.runs(20, days=15, trigger="watch")
        self.runs(20, days=15, trigger="manual")
        self.runs(ALWAYS_KEPT, days=1)
        assert self.prune() == 20
        assert set(SyncRun.objects.values_list("trigger", flat=True)) == {"manual", "schedule"}

    def test_more_than_one_portion_goes_at_once(self, monkeypatch):
        monkeypatch.setattr("ocpp_billing.sync.retention.PORTION", 7)
        self.runs(30, days=91)
        self.runs(ALWAYS_KEPT, days=1)
        assert self.prune() == 30

    def test_the_settings_decide(self):
        self.runs(5, days=8)
        self.runs(ALWAYS_KEPT, days=1)
        assert self.prune(run_retention_days=7) == 5

    def test_resolved_alerts_go_and_open_ones_stay(self):
        for resolved_at in (NOW - timedelta(days=91), None):
            alert = Alert.objects.create(
                source_id="main",
                condition="sync_failing",
                says="",
                do="",
                opened_at=NOW - timedelta(days=100),
                resolved_at=resolved_at,
            )
            AlertMessage.objects.create(alert=alert, channel="log", resolved=False)
        self.prune()
        assert Alert.objects.get().resolved_at is None
        assert AlertMessage.objects.count() == 1

    def test_whoever_does_not_lead_prunes_nothing(self):
        self.runs(ALWAYS_KEPT + 3, days=2000)
        heartbeat(leader=False)
        with pytest.raises(LeadershipLostError):
            prune(load_config({"OCPP_BILLING_ENV_FILE": ""}), "w", NOW)
        assert SyncRun.objects.count() == ALWAYS_KEPT + 3


class TestLiveness:
    def test_a_leader_that_beats_is_alive(self):
        heartbeat(seen=timedelta(seconds=5), next_run_at=NOW + timedelta(minutes=3))
        alive = worker_alive("main", NOW)
        assert (alive.alive, alive.leader) == (True, "w")
        assert alive.since == NOW - timedelta(hours=5)
        assert alive.seen_at == NOW - timedelta(seconds=5)
        assert alive.next_run_at == NOW + timedelta(minutes=3)

    def test_one_that_was_silent_for_half_a_minute_is_not(self):
        heartbeat(seen=SILENT_AFTER)
        alive = worker_alive("main", NOW)
        assert (alive.alive, alive.since, alive.leader) == (False, NOW - SILENT_AFTER, None)
        assert worker_alive("main", NOW - timedelta(seconds=1)).alive

    def test_a_standby_is_alive_and_leads_nothing(self):
        heartbeat(leader=False)
        alive = worker_alive("main", NOW)
        assert (alive.alive, alive.leader, alive.next_run_at) == (True, None, None)

    def test_one_that_said_good_bye_is_not(self):
        heartbeat(leader=False, stopped_at=NOW - timedelta(seconds=1))
        assert not worker_alive("main", NOW).alive
        assert worker_alive("main", NOW).since == NOW - timedelta(seconds=1)

    def test_a_command_serves_no_schedule(self):
        heartbeat(kind="command")
        alive = worker_alive("main", NOW)
        assert (alive.alive, alive.since) == (False, None)

    def test_the_last_completed_run_is_told(self):
        for status, minutes in (("completed", 30), ("partial", 20), ("failed", 10)):
            ended_run(status, "schedule", minutes)
        assert worker_alive("main", NOW).last_completed == NOW - timedelta(minutes=20)

    def test_what_only_asked_lago_does_not_make_it_fresh(self):
        for trigger, minutes in (("schedule", 30), ("watch", 20), ("delivery", 10), ("confirm", 5)):
            ended_run("completed", trigger, minutes)
        assert worker_alive("main", NOW).last_completed == NOW - timedelta(minutes=20)

    @pytest.mark.parametrize(("name", "status"), [("discover", "failed"), ("record", "interrupted")])
    def test_what_fails_over_lago_has_read_steve_all_the_same(self, name, status):
        ended_run("completed", "schedule", 30)
        for minutes, error in ((20, None), (10, "StEvE is away")):
            run = ended_run(status, "schedule", minutes)
            SyncStep.objects.create(run=run, name=name, started_at=NOW, ended_at=NOW, error=error)
        SyncStep.objects.create(run=run, name="decide", started_at=NOW, ended_at=NOW)
        assert worker_alive("main", NOW).last_completed == NOW - timedelta(minutes=20)


def ended_run(status, trigger, minutes):
    ended = NOW - timedelta(minutes=minutes)
    return SyncRun.objects.create(
        source_id="main", status=status, trigger=trigger, requested_at=ended, ended_at=ended
    )


class TestLeading:
    def test_whoever_takes_over_ends_the_others_leading(self):
        first, second = (Heartbeat("main", name, WorkerKind.WORKER) for name in ("first", "second"))
        first.lead(1)
        with leader_transaction("first"):
            pass
        second.lead(2)
        assert WorkerHeartbeat.objects.get(leader=True).worker == "second"
        with (
            pytest.raises(LeadershipLostError, match="first does not lead any more"),
            leader_transaction("first"),
        ):
            pass
        first.beat()
        assert first.lost.is_set()
        second.beat()
        assert not second.lost.is_set()
