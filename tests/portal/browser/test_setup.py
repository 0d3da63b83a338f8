"""Set-up and delivery as people see them. The whole story is in test_story.py."""

from playwright.sync_api import expect

from ocpp_billing.accounts.models import Role
from ocpp_billing.billing.models import DeliveryControl
from tests.portal import ledger
from tests.portal.browser.conftest import check_every_look


def test_the_checklist_asks_both_systems_and_says_what_is_wrong(visit, now):
    ledger.fill(now)
    page = visit("/setup", role=Role.ADMIN)
    steve = page.get_by_role("listitem", name="Read from StEvE")
    expect(steve.get_by_text("STEVE_API_URL")).to_be_visible(timeout=15_000)
    lago = page.get_by_role("listitem", name="Reach Lago")
    expect(lago.get_by_text("Check LAGO_API_URL", exact=False).first).to_be_visible(timeout=15_000)
    check_every_look(page)


def test_the_checklist_without_javascript(visit):
    page = visit("/setup", role=Role.OPERATOR, javascript=False, size="phone")
    page.get_by_role("listitem", name="Read from StEvE").get_by_role("link", name="Check it now").click()
    expect(page.get_by_role("listitem", name="Read from StEvE").get_by_text("STEVE_API_URL")).to_be_visible()


def test_pausing_and_resuming(visit, now):
    ledger.fill(now)
    DeliveryControl.objects.create(source=ledger.add_source())
    page = visit("/delivery/pause", role=Role.ADMIN)
    check_every_look(page)
    page.get_by_label("Why").fill("The tariff is wrong")
    page.get_by_role("button", name="Pause delivery").click()
    banner = page.get_by_role("region", name="Delivery is paused")
    expect(banner).to_contain_text("The tariff is wrong")
    banner.get_by_role("link", name="Resume").click()
    check_every_look(page)
    page.get_by_role("button", name="Resume delivery").click()
    expect(banner).to_be_hidden()
