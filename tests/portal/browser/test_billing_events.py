"""Billing events and search, as an operator and whoever does the books use them."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

from playwright.sync_api import expect

from ocpp_billing.accounts.models import Role
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.mappings.models import LagoCustomer
from ocpp_billing.sync.models import WorkerHeartbeat
from tests.portal import ledger
from tests.portal.browser.conftest import SIZES, check_every_look


def fill(now):
    """Every state, one session in two of them, ids of Lago's, a customer with a name."""
    ledger.fill(now)
    WorkerHeartbeat.objects.update(seen_at=now + timedelta(minutes=10))  # it does not fall silent
    session = ledger.add_session(now, energy_wh=10_000, state="confirmed", tag="TAG-8888")
    ledger.add_event(session, now, energy_wh=500, state="queued")
    ChargingSession.objects.filter(pk=session.pk).update(state="queued", stop_wh=11_500)
    UsageEvent.objects.filter(session=session, n=1).update(lago_event_id="5f0c3c1e-7a3b-4e0c-9d7e-lago")
    LagoCustomer.objects.create(external_id="customer", name="Stadtwerke Nord", read_at=now)
    return session


def test_a_number_of_the_board_leads_to_its_sessions_and_those_to_the_file(visit, now, tmp_path):
    fill(now)
    page = visit("/", role=Role.OPERATOR)
    link = page.get_by_role("link", name=re.compile(r"kWh Held"))
    energy = link.inner_text()
    link.click()
    expect(page).to_have_url(re.compile(r"/billing-events\?state=held$"))
    expect(page.get_by_role("group", name="Totals of the filter")).to_contain_text(f"{energy} kWh")
    form = page.get_by_role("form", name="Filter")
    expect(form.get_by_label("State")).to_have_value("held")
    check_every_look(page)

    form.get_by_label("Tag").fill("tag-7")
    page.keyboard.press("Enter")
    expect(page.get_by_role("row").filter(has_text="TAG-7")).to_have_count(2)
    expect(page.get_by_role("group", name="Totals of the filter")).to_contain_text("24.542 kWh")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export this list").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.suffix == ".csv"
    assert Path(file).read_text(encoding="utf-8-sig").count("TAG-7") == 2

    form.get_by_label("Tag").fill("NOBODY")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No session matches")).to_be_visible()
    check_every_look(page)
    page.get_by_role("link", name="Clear the filter").click()
    expect(page).to_have_url(re.compile(r"/billing-events$"))
    page.get_by_role("link", name="Next page").click()
    expect(page).to_have_url(re.compile(r"cursor="))
    page.go_back()
    check_every_look(page)


def test_the_slash_searches_from_every_page_and_one_exact_hit_is_opened(visit, now):
    session = fill(now)
    page = visit("/billing-events", role=Role.OPERATOR)
    page.keyboard.press("/")
    box = page.get_by_role("searchbox", name="Search sessions").first
    expect(box).to_be_focused()
    box.fill("tag-")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Search for “tag-”")
    expect(page.get_by_role("link", name="TAG-8888")).to_be_visible()
    check_every_look(page)
    page.set_viewport_size(SIZES["desktop"])
    page.keyboard.press("/")
    expect(box).to_be_focused()
    page.keyboard.type("no such thing")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing found")).to_be_visible()
    check_every_look(page)
    page.set_viewport_size(SIZES["desktop"])
    page.keyboard.press("/")
    page.keyboard.type("5f0c3c1e-7a3b-4e0c-9d7e-lago")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Session {session.steve_id}")


def test_a_phone_without_javascript_filters_and_opens_a_session(visit, now):
    fill(now)
    page = visit("/billing-events", size="phone", role=Role.VIEWER, javascript=False)
    page.get_by_role("form", name="Filter").get_by_label("State").select_option("stuck")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("tbody tr")).to_have_count(2)
    page.locator("tbody tr").first.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Session ")
    page.get_by_text("The StEvE row as read").click()
    expect(page.locator("#raw .payload")).to_be_visible()


def test_a_new_installation_is_told_what_will_be_here(visit, now):
    ledger.add_worker(now)
    page = visit("/billing-events", role=Role.VIEWER)
    expect(page.get_by_text("No charging session yet")).to_be_visible()
    check_every_look(page)
