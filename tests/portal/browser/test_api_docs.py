"""The documentation of the API in a real browser, under the same strict policy as every page."""

from __future__ import annotations

from playwright.sync_api import expect

from ocpp_billing.accounts.models import Role
from ocpp_billing.sync.models import SyncRun


def test_the_documentation_is_drawn_without_another_site_and_tries_an_operation(visit):
    page = visit("/api/docs", role=Role.OPERATOR)

    expect(page.get_by_role("heading", name="OCPP Billing Sync")).to_be_visible()
    trigger = page.locator(".opblock-post", has_text="/api/sync").first
    trigger.locator(".opblock-summary").click()
    trigger.get_by_role("button", name="Try it out").click()
    trigger.get_by_role("button", name="Execute").click()

    expect(trigger.locator(".live-responses-table .response-col_status").last).to_contain_text("202")
    assert SyncRun.objects.get().trigger == "api"


def test_nobody_reads_it_without_signing_in(visit):
    page = visit("/api/docs")

    expect(page.get_by_label("E-mail")).to_be_visible()
