"""A session's page, as whoever asks "why this charge?" reads it."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from playwright.sync_api import expect

from ocpp_billing.accounts.models import Role
from ocpp_billing.billing import review
from ocpp_billing.billing.models import LagoSubscription, UsageEvent
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.mappings.models import LagoCustomer
from tests.portal import ledger
from tests.portal.browser.conftest import check_every_look

PAYLOAD = {
    "transaction_id": "steve:main:1-00000000:1",
    "external_subscription_id": "subscription",
    "code": "ev_charging_kwh",
    "properties": {"kwh": "44.000", "id_tag_last4": "A17F"},
}


@pytest.fixture
def billed(now):
    """Confirmed, with a correction that Lago refused, and an event before it that was given up."""
    ledger.add_worker(now, seen_ago=-timedelta(minutes=10))  # it does not fall silent in the middle
    ledger.add_mapping(now, tag="CARD-A17F")
    LagoCustomer.objects.create(external_id="customer", name="Stadtwerke Nord", read_at=now)
    LagoSubscription.objects.create(
        lago_id="lago", external_id="subscription", external_customer_id="customer", plan_code="basic",
        status="active", started_at=now - timedelta(days=90), read_at=now,
        period_from=now - timedelta(days=20), period_to=now + timedelta(days=10),
    )  # fmt: skip
    session = ledger.add_session(now, energy_wh=44_000, state="confirmed", tag="CARD-A17F")
    period = {"period_from": now - timedelta(days=20), "period_to": now + timedelta(days=10)}
    UsageEvent.objects.update(
        payload=json.dumps(PAYLOAD), first_attempt_at=now, accepted_at=now, confirmed_at=now,
        lago_event_id="5f0c3c1e-7a3b-4e0c-9d7e-0123456789ab", answer={"outcome": "accepted"}, **period,
    )  # fmt: skip
    ledger.add_event(session, now, energy_wh=1_500, state="rejected", reason="value_is_invalid")
    answer = {"outcome": "rejected", "says": "code: not found", "status": 422}
    UsageEvent.objects.filter(n=2).update(answer=answer, first_attempt_at=now, **period)
    ledger.add_event(session, now, energy_wh=1_500, state="void")
    UsageEvent.objects.filter(n=3).update(
        answer={"outcome": "given up", "says": "Lago never got it and would not bill it any more"},
        attempts=1, first_attempt_at=now - timedelta(hours=1), given_up_at=now - timedelta(minutes=30), turned_up_at=now,
    )  # fmt: skip
    ChargingSession.objects.update(
        state="rejected", reason="value_is_invalid", stop_wh=46_500, raw={"id": 1, "ocppIdTag": "CARD-A17F"}
    )
    return session


def test_a_charge_is_explained_and_its_payload_copied_to_the_byte(visit, now, billed):
    page = visit("/billing-events", role=Role.OPERATOR)
    page.context.grant_permissions(["clipboard-write"])
    page.get_by_role("link", name=f"#{billed.steve_id}").click()
    story = page.get_by_role("region", name="From the plug to the invoice")
    for part in ("Decided: bill it", "44.000 kWh to subscription", "code: not found", "Given up"):
        expect(story).to_contain_text(part)
    story.get_by_text("The exact payload").first.click()
    button = story.get_by_role("button", name="Copy as it is sent").first
    button.click()
    expect(button).to_contain_class("good")
    # Our policy lets no page read the clipboard, so what is in it is pasted.
    page.keyboard.press("/")
    page.keyboard.press("Control+V")
    expect(page.get_by_role("searchbox")).to_have_value(json.dumps(PAYLOAD))
    page.get_by_role("searchbox").fill("")
    # Over plain http a browser shows no clipboard to a page.
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    button = page.get_by_role("button", name="Copy 5f0c3c1e-7a3b-4e0c-9d7e-0123456789ab").last
    button.click()
    expect(button).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.press("Control+V")
    expect(page.locator("#search-top")).to_have_value("5f0c3c1e-7a3b-4e0c-9d7e-0123456789ab")
    check_every_look(page)


def test_what_is_held_says_by_which_number_and_what_people_did(visit, now):
    ledger.add_worker(now, seen_ago=-timedelta(minutes=10))
    session = ledger.add_session(now, energy_wh=600_000, reason="implausible", tag="CARD-A17F")
    ledger.add_decision(session, now, "hold", "implausible", says="600.000 kWh is more than 500 kWh")
    review.accept(session.pk, note="It is a bus depot.", by="ada@example.org")
    page = visit(f"/sessions/{session.pk}", role=Role.OPERATOR)
    expect(page.get_by_role("row").filter(has_text="600.000 kWh > 500 kWh")).to_contain_text(
        "accepted by a person"
    )
    expect(page.get_by_text("It is a bus depot.")).to_be_visible()
    check_every_look(page)


def test_a_stuck_one_that_was_billed_before_is_read_by_a_viewer_without_javascript(visit, now, billed):
    evidence = {"source": "meter_value", "stop_wh": 41_500, "at": None, "read_at": now.isoformat()}
    ChargingSession.objects.update(
        state="stuck", reason=None, stopped_at=None, stop_wh=None, stuck_since=now, evidence=evidence,
        rest_state="stuck", rest_wh=0,
    )  # fmt: skip
    page = visit(f"/sessions/{billed.pk}", size="phone", role=Role.VIEWER, javascript=False)
    expect(page.get_by_role("heading", name="Never stopped")).to_be_visible()
    expect(page.get_by_text("The last meter value of the session says 41.500 kWh.")).to_be_visible()
    expect(page.get_by_text("44.000 kWh to subscription")).to_be_visible()
    page.get_by_text("The StEvE row as read").click()
    expect(page.locator("#raw")).to_contain_text("…A17F")
    assert "CARD" not in page.content()
    page = visit(f"/sessions/{billed.pk}", role=Role.OPERATOR)
    check_every_look(page)


@pytest.mark.parametrize("scripted", [True, False], ids=["with JavaScript", "without"])
def test_a_billed_session_is_moved_from_its_own_page(visit, now, scripted):
    """Whoever let it be billed there. Without Lago it says so, and nothing is moved."""
    session = ledger.add_session(now, energy_wh=44_000, state="confirmed", tag="CARD-A17F")
    LagoCustomer.objects.create(external_id="alice", name="Alice Ampère", read_at=now)
    page = visit(f"/sessions/{session.pk}", role=Role.OPERATOR, javascript=scripted)
    page.get_by_role("link", name="Move to another subscription").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Move session {session.steve_id}")
    expect(page.get_by_text("44.000 kWh")).to_be_visible()
    customer = page.get_by_role("combobox", name="Customer")
    customer.or_(page.get_by_role("textbox", name="Customer")).fill("alice")
    if scripted:
        page.get_by_label("Subscription").focus()
        expect(page.get_by_text("read from Lago")).to_be_visible()
        expect(page.get_by_text("Lago cannot be asked now, and a move needs it.")).to_be_visible()
        check_every_look(page)
    page.get_by_role("button", name="Preview").last.click()
    expect(page.get_by_text("Nothing was moved: a move needs Lago")).to_be_visible()
    assert UsageEvent.objects.count() == 1
