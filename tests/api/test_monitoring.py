"""For machines that watch: who is told what, and that the figures are those of the ledger."""

from __future__ import annotations

from datetime import datetime, timedelta

import psycopg
import pytest
from django.db import OperationalError
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from ocpp_billing.accounts.models import Role
from ocpp_billing.billing.balance import prove_balance
from ocpp_billing.embedded.database import set_up_schema
from ocpp_billing.portal import monitoring
from ocpp_billing.schema import MIGRATION_LOCK, SchemaError, bring_up_to_date
from ocpp_billing.sync.models import SyncStep
from tests.engine.processes import test_database_url
from tests.portal import ledger

pytestmark = pytest.mark.django_db

HERE = {"headers": {"Host": "localhost:8000"}}


def figures(client, **given):
    response = client.get("/metrics", **(given or HERE))
    assert response.status_code == 200
    return {
        (sample.name.removeprefix("ocpp_billing_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.content.decode())
        for sample in family.samples
    }


# -- who is told -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"headers": {"Host": "localhost:8000"}}, True),
        ({"headers": {"Host": "127.0.0.1"}}, True),
        ({"headers": {"Host": "[::1]:8000"}, "REMOTE_ADDR": "::1"}, True),
        ({"headers": {"Host": "localhost"}, "REMOTE_ADDR": "192.0.2.7"}, False),
        ({"headers": {"Host": "testserver"}}, False),
        ({"headers": {"Host": "localhost", "X-Forwarded-For": "192.0.2.7"}}, False),
        ({"headers": {"Host": "localhost", "X-Forwarded-For": ""}}, False),
        ({"headers": {"Host": "localhost", "Forwarded": "for=192.0.2.7"}}, False),
        ({"headers": {"Host": "localhost", "X-Real-IP": "192.0.2.7"}}, False),
    ],
)
def test_only_this_machine_itself_is_told_without_a_token(client, path, given, told):
    response = client.get(path, **given)

    if path == "/metrics":
        assert response.status_code == (200 if told else 401)
    else:
        assert response.status_code == 200
        assert ("balance" in response.json()) is told


def test_a_bearer_of_a_valid_token_is_told_from_anywhere(as_token):
    call = as_token(Role.VIEWER)

    for path in ("/metrics", "/readyz"):
        assert call.client.get(path, headers=call.headers, REMOTE_ADDR="192.0.2.7").status_code == 200


def test_a_wrong_token_is_refused_even_here(client):
    for path in ("/metrics", "/readyz"):
        answer = client.get(path, headers={"Host": "localhost", "Authorization": "Bearer obs_wrong"})
        assert answer.status_code == 401


def test_a_session_alone_is_not_enough(as_session):
    assert as_session(Role.ADMIN).client.get("/metrics").status_code == 401


# -- ready -------------------------------------------------------------------------------------------


def test_ready_says_so_with_the_worker_and_the_balance(client, now):
    ledger.add_worker(now)
    ledger.add_session(now, energy_wh=1_500)

    body = client.get("/readyz", **HERE).json()

    assert body["status"] == "ready"
    assert body["worker"]["alive"] is True
    balance = body["balance"]
    assert balance["read"] == sum_of(balance["states"]) == {"sessions": 1, "energy_wh": 1_500}
    assert balance["unexplained"] == {"sessions": 0, "energy_wh": 0}
    assert balance["proved_at"] is None  # nobody has yet


def sum_of(amounts):
    return {name: sum(amount[name] for amount in amounts.values()) for name in ("sessions", "energy_wh")}


def test_ready_says_when_the_balance_was_last_proved(client, now):
    ledger.add_worker(now)
    proved_at = prove_balance("main").proved_at

    body = client.get("/readyz", **HERE).json()

    said_at = datetime.fromisoformat(body["balance"]["proved_at"])
    assert abs(said_at - proved_at) < timedelta(milliseconds=1)


def test_not_ready_while_the_schema_is_of_another_version(client):
    MigrationRecorder.Migration.objects.filter(app="accounts").order_by("-id").first().delete()

    response = client.get("/readyz")

    assert response.status_code == 503
    assert "ocpp-billing migrate" in response.json()["problem"]


def test_not_ready_on_the_schema_of_a_newer_version(client):
    MigrationRecorder.Migration.objects.create(app="billing", name="9999_of_the_future")

    response = client.get("/readyz")

    assert response.status_code == 503
    assert "newer version" in response.json()["problem"]
    assert "migrate" not in response.json()["problem"]


def test_nothing_starts_on_the_schema_of_a_newer_version_nor_changes_it(client):
    MigrationRecorder.Migration.objects.create(app="billing", name="9999_of_the_future")

    with pytest.raises(SchemaError, match="restore the backup"):
        set_up_schema(embedded=True, notice=pytest.fail)
    with pytest.raises(SchemaError, match="restore the backup"):
        bring_up_to_date(verbosity=0)


def test_whoever_waits_for_another_that_brings_the_schema_up_to_date_says_so(client):
    said = []
    with psycopg.connect(test_database_url(), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])

        def hear(sentence):
            said.append(sentence)
            other.execute("SELECT pg_advisory_unlock(%s)", [MIGRATION_LOCK])

        bring_up_to_date(verbosity=0, notice=hear)
    assert said == ["Another process brings the database's schema up to date: waiting until it is done."]


def test_not_ready_while_the_database_is_away(client, monkeypatch):
    def away():
        raise OperationalError("connection to 10.0.0.7 refused")

    monkeypatch.setattr(monitoring, "find_schema_error", away)

    response = client.get("/readyz")

    assert response.status_code == 503
    assert "10.0.0.7" not in response.content.decode()


def test_without_a_database_metrics_are_missing_not_wrong(client, monkeypatch):
    def away(_config):
        raise OperationalError("gone")

    monkeypatch.setattr(monitoring, "read_metrics", away)

    assert client.get("/metrics", **HERE).status_code == 503


# -- the figures -------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_ledger(client, now):
    ledger.add_worker(now, seen_ago=timedelta(seconds=3))
    ledger.add_run(now, ago=timedelta(days=2), status="failed")
    run = ledger.add_run(
        now,
        ago=timedelta(minutes=5),
        took=timedelta(seconds=2),
        counts={"steve_calls": 4, "lago_calls": 2},
    )
    SyncStep.objects.create(
        run=run, name="discover", started_at=run.started_at, ended_at=run.started_at + timedelta(seconds=1)
    )
    ledger.add_session(now, energy_wh=1_000, state="queued")
    ledger.add_session(now, energy_wh=2_000, stopped_ago=timedelta(hours=5), reason="implausible")
    ledger.add_session(now, energy_wh=4_000, state="confirmed")

    found = figures(client)

    assert found["sessions", "queued"] == found["sessions", "held"] == found["sessions", "confirmed"] == 1
    assert found["sessions", "stuck"] == 0
    assert found["energy_wh", "held"] == 2_000
    assert (found["reason_sessions", "implausible"], found["reason_energy_wh", "implausible"]) == (1, 2_000)
    assert found["negative_sessions",] == 0
    assert (found["read_sessions",], found["read_energy_wh",]) == (3, 7_000)
    assert (found["unexplained_sessions",], found["unexplained_energy_wh",]) == (0, 0)
    assert found["queue_length",] == 1
    assert found["held_oldest_age_seconds",] == pytest.approx(5 * 3600, abs=60)
    assert found["last_completed_run_age_seconds",] == pytest.approx(298, abs=60)
    assert found["next_run_timestamp_seconds",] == pytest.approx((now + timedelta(minutes=12)).timestamp())
    assert found["worker_up",] == 1
    assert found["last_run_duration_seconds",] == 2
    assert found["last_run_step_duration_seconds", "discover"] == 1
    assert (found["last_run_calls", "steve"], found["last_run_calls", "lago"]) == (4, 2)
    assert (found["runs_last_day", "completed"], found["runs_last_day", "failed"]) == (1, 0)
    assert found["delivery_mode", "shadow"] == 1
    assert found["delivery_mode", "live"] == 0


def test_an_empty_ledger_has_figures_too(client):
    found = figures(client)

    assert found["worker_up",] == 0
    assert found["read_sessions",] == 0
    assert ("last_completed_run_age_seconds",) not in found


def test_a_worker_that_is_gone_shows(client, now):
    ledger.add_worker(now, seen_ago=timedelta(minutes=2))

    found = figures(client)

    assert found["worker_up",] == 0
    assert found["worker_silent_seconds",] == pytest.approx(120, abs=30)
    assert ("next_run_timestamp_seconds",) not in found


def test_no_label_grows_with_the_ledger(client, now):
    ledger.fill(now)
    few = set(figures(client))
    for number in range(30):
        ledger.add_session(now, tag=f"TAG-{number}", reason="implausible")
        ledger.add_run(now, ago=timedelta(hours=number))

    assert set(figures(client)) == few


def test_a_scrape_takes_few_queries(client, now, django_assert_max_num_queries):
    ledger.fill(now)

    with django_assert_max_num_queries(15):
        figures(client)


def test_every_process_says_the_same(client, now):
    ledger.fill(now)

    def still(found):
        return {key: value for key, value in found.items() if "seconds" not in key[0]}

    assert still(figures(client)) == still(figures(Client()))
