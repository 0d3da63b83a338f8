"""Trigger a run, and be told honestly what will happen."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ocpp_billing.accounts.models import AuditEntry, Role
from ocpp_billing.local_time import day_and_time
from ocpp_billing.sync.models import SyncLog, SyncRun, SyncStep, WorkerHeartbeat
from tests.portal import ledger

pytestmark = pytest.mark.django_db


def test_a_trigger_starts_now_while_a_worker_is_idle(as_token, now):
    ledger.add_worker(now)

    status, body = as_token(Role.OPERATOR)("POST", "/sync")

    assert (status, body["outcome"]) == (202, "starts_now")
    run = SyncRun.objects.get()
    assert body["run"]["id"] == run.pk
    assert (run.status, run.trigger) == ("requested", "api")
    assert run.requested_by == "operator@example.org (token tests)"
    assert AuditEntry.objects.get(action="sync.requested").target == f"run {run.pk}"


def test_a_trigger_during_a_run_waits_for_it_and_many_ask_for_one(as_token, now):
    ledger.add_worker(now)
    running = ledger.add_run(now, ago=timedelta(seconds=5), status="running")
    call = as_token(Role.OPERATOR)

    answers = [call("POST", "/sync")[1] for _ in range(5)]

    assert {answer["outcome"] for answer in answers} == {"queued_behind"}
    assert f"run {running.pk}" in answers[0]["message"]
    assert SyncRun.objects.filter(status="requested").count() == 1


def test_a_trigger_without_a_worker_is_kept_and_says_since_when(as_token, now):
    ledger.add_worker(now, seen_ago=timedelta(hours=2))

    status, body = as_token(Role.OPERATOR)("POST", "/sync")

    assert (status, body["outcome"]) == (202, "no_worker")
    assert f"since {day_and_time(now - timedelta(hours=2))}" in body["message"]
    assert SyncRun.objects.get().status == "requested"


def test_the_status_says_whether_all_is_well(as_token, now):
    ledger.add_worker(now)
    last = ledger.add_run(now, ago=timedelta(minutes=3))
    running = ledger.add_run(now, ago=timedelta(seconds=3), status="running")

    _, body = as_token(Role.VIEWER)("GET", "/sync/status")

    assert body["worker_alive"] is True
    assert body["next_run_at"] is not None
    assert body["last_completed_at"] is not None
    assert body["running"]["id"] == running.pk
    assert body["requested"] is None
    assert (body["last"]["id"], body["last"]["duration_s"]) == (last.pk, 0.4)
    assert body["delivery"]["mode"] == "shadow"


def test_without_a_worker_nothing_is_promised(as_token, now):
    ledger.add_worker(now, seen_ago=timedelta(minutes=5))
    WorkerHeartbeat.objects.update(next_run_at=now + timedelta(minutes=1))

    _, body = as_token(Role.VIEWER)("GET", "/sync/status")

    assert (body["worker_alive"], body["next_run_at"]) == (False, None)


def test_a_run_is_shown_with_its_steps_and_its_log_page_by_page(as_token, now):
    run = ledger.add_run(
        now, ago=timedelta(minutes=1), errors=[{"step": "deliver", "error": "Lago is away."}]
    )
    SyncStep.objects.create(
        run=run, name="deliver", ended_at=now, counts={"accepted": 2}, error="Lago is away."
    )
    for number in range(3):
        SyncLog.objects.create(run=run, level="info", action="x", message=f"line {number}")
    call = as_token(Role.VIEWER)

    _, body = call("GET", f"/sync/runs/{run.pk}")
    assert body["errors"] == [{"step": "deliver", "error": "Lago is away."}]
    assert [(step["name"], step["counts"]) for step in body["steps"]] == [("deliver", {"accepted": 2})]

    _, first = call("GET", f"/sync/runs/{run.pk}/log?limit=2")
    _, second = call("GET", f"/sync/runs/{run.pk}/log?limit=2&cursor={first['next']}")
    assert [line["message"] for line in first["items"] + second["items"]] == ["line 0", "line 1", "line 2"]
    assert second["next"] is None


def test_the_log_of_a_run_that_goes_on_can_be_followed(as_token, now):
    run = ledger.add_run(now, ago=timedelta(seconds=1), status="running")
    SyncLog.objects.create(run=run, level="info", action="x", message="first")
    call = as_token(Role.VIEWER)

    _, seen = call("GET", f"/sync/runs/{run.pk}/log")
    SyncLog.objects.create(run=run, level="info", action="x", message="second")
    _, later = call("GET", f"/sync/runs/{run.pk}/log?cursor={seen['next']}")

    assert [line["message"] for line in later["items"]] == ["second"]


def test_runs_are_found_by_status(as_token, now):
    ledger.add_run(now, ago=timedelta(hours=2), status="failed")
    ledger.add_run(now, ago=timedelta(hours=1))

    _, body = as_token(Role.VIEWER)("GET", "/sync/runs?status=failed")

    assert [run["status"] for run in body["items"]] == ["failed"]
