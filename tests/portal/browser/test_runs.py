"""Synchronization as people see it: asked for, followed while it goes on, understood when it failed."""

from datetime import timedelta

from playwright.sync_api import expect

from ocpp_billing.accounts.models import Role
from ocpp_billing.sync.models import SyncLog, SyncRun, SyncStep
from tests.portal import ledger
from tests.portal.browser.conftest import check_every_look


def test_a_run_is_followed_while_it_goes_on(visit, now):
    run = ledger.add_run(now, ago=timedelta(seconds=2), status="running")
    page = visit(f"/sync/{run.pk}", role=Role.VIEWER)
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Run {run.pk}: Running")
    step = SyncStep.objects.create(run=run, name="discover", started_at=now)
    SyncLog.objects.create(run=run, at=now, level="info", action="a", message="backfill: 1,000 of 3,000")
    expect(page.get_by_role("region", name="Log")).to_contain_text("1,000 of 3,000", timeout=15_000)
    expect(page.get_by_role("region", name="Steps")).to_contain_text("under way")
    SyncStep.objects.filter(pk=step.pk).update(ended_at=now, counts={"discovered": 3000})
    SyncRun.objects.filter(pk=run.pk).update(status="completed", ended_at=now, counts={"discovered": 3000})
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Run {run.pk}: Completed", timeout=15_000)
    expect(page.get_by_role("region", name="Steps")).to_contain_text("+3,000 sessions")


def test_history_leads_from_trouble_to_its_cause(visit, now):
    ledger.fill(now)
    failed = SyncRun.objects.get(status="failed")
    SyncStep.objects.create(run=failed, name="discover", started_at=now, ended_at=now, error="No answer.")
    SyncLog.objects.create(run=failed, at=now, level="error", action="x", message="StEvE did not answer.")
    page = visit("/sync", role=Role.OPERATOR)
    check_every_look(page)
    page.get_by_role("link", name="With errors").click()
    page.get_by_role("link", name="Failed").click()
    expect(page.get_by_text("Check STEVE_API_URL.")).to_be_visible()
    check_every_look(page)


def test_an_empty_history_says_what_will_be_here(visit):
    page = visit("/sync", role=Role.OPERATOR)
    expect(page.get_by_role("heading", name="No run yet")).to_be_visible()
    check_every_look(page)


def test_sync_now_without_javascript_leads_to_its_run(visit, now):
    ledger.add_worker(now)
    page = visit("/sync", role=Role.OPERATOR, javascript=False, size="phone")
    page.get_by_role("button", name="Sync now").click()
    expect(page.get_by_text("The synchronization starts now.")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Waiting")
