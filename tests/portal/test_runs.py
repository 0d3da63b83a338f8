"""The pages of synchronization: history, one run, what it said."""

import re
from datetime import timedelta

import pytest

from ocpp_billing.sync.models import SyncLog, SyncStep
from tests.portal import ledger

pytestmark = pytest.mark.django_db


@pytest.fixture
def shown(signed_in):
    def text(path):
        answer = signed_in().get(path)
        assert answer.status_code == 200
        return " ".join(re.sub(r"<[^>]+>", " ", answer.content.decode()).split())

    return text


def test_full_runs_are_listed_newest_first_with_what_they_did(shown, now):
    ledger.fill(now)
    text = shown("/sync").partition("What it did")[2]
    assert text.index("By hand") < text.index("Partial") < text.index("Start-up")
    assert "+3 sessions · 2 changed · 1 held · 2 accepted" in text
    assert "StEvE did not answer within 10 s. Check STEVE_API_URL." in text


def test_short_runs_are_shown_when_asked_for(shown, now):
    ledger.add_run(now, ago=timedelta(minutes=1), trigger="watch", counts={"discovered": 7})
    assert "+7 sessions" not in shown("/sync")
    assert "+7 sessions" in shown("/sync?show=all")


def test_only_runs_with_errors(shown, now):
    ledger.fill(now)
    text = shown("/sync?show=trouble")
    assert "Interrupted" in text
    assert "Partial" in text
    assert "Failed" in text
    assert "Completed" not in text


def test_every_run_that_is_kept_can_be_reached_by_pages(signed_in, now):
    for number in range(60):
        ledger.add_run(now, ago=timedelta(minutes=60 - number))
    client, seen, address = signed_in(), [], "/sync"
    while address:
        text = client.get(address).content.decode()
        seen += re.findall(r'href="/sync/(\d+)"', text)
        following = re.search(r'href="(\?[^"]+)" rel="next"', text)
        address = following and "/sync" + following[1]
    assert len(seen) == len(set(seen)) == 60


@pytest.mark.parametrize("cursor", ["nonsense", "cnVuOi0x", "bG9nOjE", "a" * 500])
def test_a_cursor_that_is_none_begins_at_the_first_page(shown, now, cursor):
    ledger.add_run(now, ago=timedelta(minutes=1), counts={"discovered": 5})
    assert "+5 sessions" in shown(f"/sync?cursor={cursor}")


def test_a_run_shows_its_steps_errors_and_log(shown, now):
    run = ledger.add_run(
        now,
        ago=timedelta(minutes=3),
        status="failed",
        trigger="manual",
        requested_by="ada@example.org",
        errors=[{"step": "deliver", "error": "Lago answered 502. Look at Lago's log."}],
    )
    SyncStep.objects.create(run=run, name="discover", started_at=now, ended_at=now + timedelta(seconds=2))
    SyncStep.objects.create(run=run, name="deliver", started_at=now, ended_at=now, error="Lago answered 502.")
    SyncLog.objects.create(run=run, at=now, level="info", action="a", message="3 sessions decided")
    SyncLog.objects.create(run=run, at=now, level="error", action="b", message="Lago is <down>")
    text = shown(f"/sync/{run.pk}")
    assert f"Run {run.pk}: Failed" in text
    assert "Lago answered 502. Look at Lago&#x27;s log." in text
    assert "Read StEvE" in text
    assert "2.0 s" in text
    assert text.index("Lago is &lt;down&gt;") < text.index("3 sessions decided")
    assert "ada@example.org" in text


def test_a_long_log_has_pages(signed_in, now):
    run = ledger.add_run(now, ago=timedelta(minutes=3))
    SyncLog.objects.bulk_create(
        SyncLog(run=run, at=now, level="info", action="a", message=f"sentence {n}.") for n in range(450)
    )
    client, seen, address = signed_in(), [], f"/sync/{run.pk}"
    while address:
        text = client.get(address).content.decode()
        seen += re.findall(r"sentence (\d+)\.", text)
        following = re.search(r'href="(\?[^"]+)" rel="next"', text)
        address = following and f"/sync/{run.pk}" + following[1]
    assert seen == [str(n) for n in range(449, -1, -1)]


def test_a_waiting_run_says_what_it_waits_for(shown, now):
    run = ledger.add_run(now, ago=timedelta(seconds=3), status="requested")
    assert "waits for a worker; none is alive" in shown(f"/sync/{run.pk}")
    ledger.add_worker(now)
    assert "waits for the run before it" in shown(f"/sync/{run.pk}")


def test_a_run_that_is_not_there_says_so(signed_in):
    answer = signed_in().get("/sync/4711")
    assert answer.status_code == 404
