"""Mappings as a person makes them: with a script and without, by mouse and by keyboard, in every look."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from playwright.sync_api import expect

from ocpp_billing.accounts.models import Role
from ocpp_billing.mappings.models import TagMapping
from tests.portal import ledger
from tests.portal.browser.conftest import check_every_look
from tests.portal.test_mappings import HEADER, remember_customer


@pytest.fixture
def waiting(now):
    """Two tags that wait, two customers that Lago showed a moment ago."""
    remember_customer(now, "acme", "acme-fleet", "acme-staff", email="office@acme.example")
    remember_customer(now, "alice", "sub-alice")
    ledger.add_session(now, tag="TAG-7", energy_wh=18_042, reason="unmapped_tag")
    ledger.add_session(
        now, tag="TAG-7", energy_wh=6_500, reason="unmapped_tag", stopped_ago=timedelta(days=12)
    )
    ledger.add_session(now, tag="TAG-8", energy_wh=2_000, reason="unmapped_tag")


def test_a_tag_is_mapped_by_keyboard_and_the_parts_that_depend_follow(visit, now, waiting):
    page = visit("/mappings", role=Role.OPERATOR)
    expect(page.get_by_role("heading", level=1)).to_have_text("Who pays for which tag")
    check_every_look(page)
    page.get_by_role("link", name="Map TAG-7").click()
    expect(page.get_by_role("combobox", name="Tag")).to_have_value("TAG-7")
    page.evaluate("window.sameDocument = true")
    customer = page.get_by_role("combobox", name="Customer")
    options = page.locator(".options [role=option]:visible")
    customer.click()
    expect(options).to_have_count(2)
    customer.press_sequentially("office")
    expect(options).to_have_count(1)
    expect(customer).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".options [aria-selected=true]")).to_contain_text("The acme")
    check_every_look(page)
    page.keyboard.press("Enter")
    expect(customer).to_have_value("acme")
    expect(customer).to_be_focused()
    expect(options).to_have_count(0)
    expect(page.get_by_text("The customer has 2 active subscriptions")).to_be_visible()
    page.get_by_label("Subscription").select_option("acme-fleet")
    # The billing period of the one that is chosen is a beginning now; none is chosen for anybody.
    period = page.get_by_label("The beginning of the current billing period of acme-fleet")
    expect(period).to_be_visible()
    expect(page.get_by_label("Subscription")).to_have_value("acme-fleet")
    expect(page.locator("[name=beginning]:checked")).to_have_count(0)
    check_every_look(page)
    assert page.evaluate("window.sameDocument")
    # Leaving the field of the customer asks nothing again: the answer would take this choice away.
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_label("The first session that waits for it").check()
    expect(page.get_by_label("The first session that waits for it")).to_be_checked()
    assert asked == []
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_text("2 held sessions, 24.542 kWh")).to_be_visible()
    expect(page.get_by_text("Period already closed")).to_be_visible()
    check_every_look(page)
    page.get_by_role("button", name="Save the mapping").click()
    expect(page.get_by_text("2 sessions, 24.542 kWh, are decided in the next run")).to_be_visible()
    mapping = TagMapping.objects.get()
    assert (mapping.customer_external_id, mapping.subscription_external_id) == ("acme", "acme-fleet")
    check_every_look(page)


def test_what_takes_long_shows_its_shape_until_it_is_there(visit, now, waiting):
    page = visit("/mappings/new?tag=TAG-7", role=Role.OPERATOR)
    held_back = []
    page.route(re.compile("/mappings/(customers|new)"), lambda route: held_back.append(route))  # noqa: PLW0108

    def drawn(selector, pseudo):
        return float(page.eval_on_selector(selector, f"e => getComputedStyle(e, {pseudo!r}).opacity"))

    customer = page.get_by_role("combobox", name="Customer")
    customer.press("ArrowDown")
    shape = page.locator(".options .shape")
    expect(shape).to_have_css("opacity", "1")
    held_back.pop().continue_()
    expect(page.locator(".options [role=option]")).to_have_count(2)
    expect(shape).to_have_count(0)
    expect(page.locator(".options [aria-selected=true]")).to_contain_text("The acme")
    customer.press("Enter")
    page.wait_for_function("() => document.querySelector('#payer').classList.contains('htmx-request')")
    assert drawn("#payer", "::after") < 1  # what is quick does not flash
    page.wait_for_function(
        "() => getComputedStyle(document.querySelector('#payer'), '::after').opacity === '1'"
    )
    # What a person chooses meanwhile was not sent, and stays chosen in the part that comes.
    first = page.get_by_label("The first session that waits for it")
    page.eval_on_selector("[name=beginning][value=first]", "e => { e.checked = true; }")
    for route in held_back:
        route.continue_()
    expect(page.get_by_text("The customer has 2 active subscriptions")).to_be_visible()
    expect(page.locator("#payer.htmx-request")).to_have_count(0)
    expect(first).to_be_checked()
    expect(customer).to_be_focused()


def test_the_same_without_a_script(visit, now, waiting):
    page = visit("/mappings", role=Role.OPERATOR, javascript=False, size="phone")
    page.get_by_role("link", name="Map TAG-7").click()
    page.get_by_role("combobox", name="Customer").fill("ali")
    page.get_by_role("button", name="Find customers").click()
    page.get_by_role("button", name="The alice").click()
    expect(page.get_by_role("combobox", name="Customer")).to_have_value("alice")
    page.get_by_label("Subscription").select_option("sub-alice")
    page.get_by_label("Another date and time").nth(0).check()
    page.get_by_label("From when: date and time").fill((now - timedelta(days=5)).strftime("%Y-%m-%dT%H:%M"))
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_text("1 held session, 18.042 kWh")).to_be_visible()
    expect(page.get_by_text("1 waiting session, 6.500 kWh, started before")).to_be_visible()
    page.get_by_role("button", name="Change something").click()
    expect(page.get_by_label("Subscription")).to_have_value("sub-alice")
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Save the mapping").click()
    expect(page.get_by_text("TAG-7 is mapped to alice")).to_be_visible()
    # Off, and on again after saying what becomes of the gap.
    page.get_by_role("link", name="Switch off").click()
    page.get_by_role("button", name="Switch off now").click()
    page.get_by_role("link", name="Switch on").click()
    page.get_by_label(re.compile("Do not bill them")).check()
    page.get_by_role("button", name="Switch on").click()
    expect(page.get_by_text("TAG-7 is switched on")).to_be_visible()
    assert [row.active for row in TagMapping.objects.order_by("valid_from")] == [True, False, True]


def test_every_other_page_in_every_look(visit, now, waiting):
    page = visit("/mappings?q=nothing-like-this", role=Role.OPERATOR)
    check_every_look(page)
    page.goto("/mappings/import")
    check_every_look(page)
    page.get_by_label("Or paste its lines").fill(
        HEADER + "TAG-9,alice,,2026-01-01,,,\nTAG-8,,,2026-01-01,,,\n"
    )
    page.get_by_role("button", name="Show what it would do").click()
    check_every_look(page)
    page.get_by_role("button", name="Make 1 mapping").click()
    expect(page.get_by_text("1 mapping is made")).to_be_visible()
    mapping = TagMapping.objects.get()
    billed = ledger.add_session(now, tag="TAG-9", state="accepted", energy_wh=8_000)
    billed.decisions.update(mapping=mapping)
    off = ledger.add_mapping(now, tag="TAG-6", active=False)
    for path in (
        f"/mappings/{mapping.pk}",
        f"/mappings/{mapping.pk}/change",
        f"/mappings/{mapping.pk}/switch?when=at&at=2026-06-01T10:00",
        f"/mappings/{mapping.pk}/delete",
        f"/mappings/{mapping.pk}/move",
        f"/mappings/{off.pk}/switch",
        f"/mappings/{off.pk}/delete",
        f"/mappings/{off.pk}/move",
    ):
        page.goto(path)
        check_every_look(page)
