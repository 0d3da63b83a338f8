"""The dashboard, sign-in and the frame of every page, as people see them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from playwright.sync_api import expect

from ocpp_billing.accounts.models import Role, User
from ocpp_billing.sync.models import SyncRun
from tests.portal import ledger
from tests.portal.browser.conftest import SIZES, check_accessibility, check_every_look


class TestLook:
    def test_the_dashboard(self, visit, now):
        ledger.fill(now)
        ledger.add_run(now, ago=timedelta(seconds=2), status="running")
        page = visit(role=Role.ADMIN)
        expect(page.get_by_role("heading", level=1)).to_have_text("Every watt-hour accounted for")
        page.get_by_text("Show the figures as a table").click()
        check_every_look(page)

    def test_the_dashboard_of_a_new_installation(self, visit):
        page = visit(role=Role.ADMIN)
        expect(page.get_by_text("No worker is running")).to_be_visible()
        check_every_look(page)

    @pytest.mark.parametrize("theme", ["light", "dark"])
    @pytest.mark.parametrize("size", SIZES)
    def test_the_menus(self, visit, size, theme):
        page = visit(size=size, theme=theme, role=Role.ADMIN)
        page.get_by_role("button", name="Account of").click()
        expect(page.get_by_role("link", name="Change password")).to_be_visible()
        check_accessibility(page)
        page.keyboard.press("Escape")
        expect(page.get_by_role("link", name="Change password")).to_be_hidden()
        if size == "phone":
            expect(page.get_by_role("link", name="Dashboard")).to_be_hidden()
            page.get_by_role("button", name="Open the menu").click()
            check_accessibility(page)
        expect(page.get_by_role("link", name="Dashboard")).to_be_visible()

    def test_sign_in_and_its_refusal(self, visit):
        page = visit("/accounts/login/")
        check_every_look(page)
        page.get_by_label("E-mail").fill("nobody@example.org")
        page.get_by_label("Password").fill("not a password")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("is not correct")
        check_every_look(page)

    def test_the_pages_of_an_account(self, visit):
        page = visit(role=Role.VIEWER)
        for path in ("/accounts/password/change/", "/accounts/reauthenticate/", "/accounts/logout/"):
            page.goto(path)
            check_every_look(page)

    def test_the_pages_before_an_account(self, visit):
        page = visit("/accounts/signup/")
        check_every_look(page)
        page.goto("/accounts/inactive/")
        check_every_look(page)

    def test_a_missing_page(self, visit):
        page = visit("/there-is-no-such-page")
        expect(page.get_by_role("heading", level=1)).to_have_text("There is no such page")
        check_every_look(page)
        assert len(visit.faults) == 1  # the browser's own word about the 404
        visit.faults.clear()


def test_sync_now_answers_in_place_and_the_run_appears_by_itself(visit, now):
    ledger.add_worker(now)
    page = visit(role=Role.OPERATOR)
    page.evaluate("window.sameDocument = true")
    page.get_by_role("button", name="Sync now").click()
    expect(page.get_by_text("The synchronization starts now.")).to_be_visible()
    runs = page.get_by_role("region", name="Recent runs")
    expect(runs).to_contain_text("Waiting", timeout=15_000)
    expect(runs).to_contain_text("operator@example.org")
    expect(page.get_by_text("The synchronization starts now.")).to_be_visible()
    assert page.evaluate("window.sameDocument")
    assert SyncRun.objects.get().requested_by == "operator@example.org"


def test_a_session_appears_by_itself_and_nothing_else_moves(visit, now):
    ledger.add_session(now, energy_wh=1_000, reason="unmapped_tag")
    page = visit(role=Role.OPERATOR)
    page.get_by_text("Show the figures as a table").click()
    page.get_by_role("button", name="Sync now").focus()
    ledger.add_session(now, energy_wh=2_345, reason="unmapped_tag")
    expect(page.get_by_role("region", name="Needs attention")).to_contain_text("3.345 kWh", timeout=15_000)
    expect(page.get_by_role("region", name="Figures of the chart")).to_be_visible()
    expect(page.get_by_role("button", name="Sync now")).to_be_focused()


def test_freshness_and_banners_change_without_a_reload(visit, now):
    page = visit(role=Role.VIEWER)
    expect(page.get_by_role("region", name="No worker is running")).to_be_visible()
    ledger.add_worker(now)
    expect(page.get_by_role("region", name="No worker is running")).to_be_hidden(timeout=15_000)
    expect(page.get_by_text("worker alive")).to_be_visible()


def test_when_the_session_has_ended_the_page_goes_to_sign_in(visit, site, now):
    page = visit(role=Role.VIEWER)
    User.objects.update(is_active=False)
    ledger.add_worker(now)
    page.wait_for_url(f"{site}/accounts/login/?next=%2F", timeout=15_000)
    visit.faults.clear()  # the browser's own word about the 401


def test_the_theme_changes_at_once_and_is_kept(visit):
    page = visit(theme="light", role=Role.VIEWER)
    html = page.locator("html")
    expect(html).to_have_attribute("data-bs-theme", "light")
    page.get_by_role("button", name="Account of").click()
    page.get_by_role("button", name="Dark").click()
    expect(html).to_have_attribute("data-bs-theme", "dark")
    expect(page.get_by_role("button", name="Dark")).to_have_attribute("aria-pressed", "true")
    page.reload()
    expect(html).to_have_attribute("data-bs-theme", "dark")
    page.emulate_media(color_scheme="dark")
    page.get_by_role("button", name="Account of").click()
    page.get_by_role("button", name="Auto").click()
    page.emulate_media(color_scheme="light")
    expect(html).to_have_attribute("data-bs-theme", "light")


def test_the_keyboard_reaches_the_content_first(visit):
    page = visit(role=Role.VIEWER)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()


def test_everything_but_the_live_parts_works_without_javascript(visit, site, now):
    ledger.fill(now)
    page = visit(size="phone", role=Role.OPERATOR, javascript=False)
    expect(page.get_by_role("heading", level=1)).to_have_text("Every watt-hour accounted for")
    page.get_by_role("button", name="Open the menu").click()
    page.get_by_role("link", name="Dashboard").click()
    page.get_by_role("button", name="Sync now").click()
    expect(page.get_by_text("The synchronization starts now.")).to_be_visible()
    page.get_by_role("button", name="Account of").click()
    page.get_by_role("button", name="Dark").click()
    expect(page.locator("html")).to_have_attribute("data-bs-theme", "dark")
    page.get_by_role("button", name="Account of").click()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{site}/accounts/login/**")
