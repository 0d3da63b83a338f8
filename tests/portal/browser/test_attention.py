"""Needs attention, as an operator uses it."""

from __future__ import annotations

from datetime import timedelta

from playwright.sync_api import expect

from ocpp_billing.accounts.models import Role
from ocpp_billing.billing.models import Ruling
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.sync.models import Alert
from tests.portal import ledger
from tests.portal.browser.conftest import check_accessibility, check_every_look
from tests.portal.test_attention import add_period, held, uncounted


def fill(now):
    """Something of every kind that waits."""
    ledger.add_worker(now, seen_ago=-timedelta(minutes=10))  # it does not fall silent in the middle
    add_period(now, days=8)
    for number in range(3):
        held(
            now,
            "unmapped_tag",
            tag="TAG-7",
            energy_wh=18_042 + number,
            says="no mapping of the tag was valid",
        )
    held(now, "unmapped_tag", tag="TAG-8", energy_wh=6_500, says="no mapping of the tag was valid")
    says = "the plan basic has no charge for ev_charging_kwh; add it in Lago"
    held(now, "metric_not_charged", customer="alice", energy_wh=44_000, says=says)
    held(
        now, "late_period", customer="alice", energy_wh=22_310, says="the billing period is already invoiced"
    )
    for _ in range(2):
        held(now, "implausible", energy_wh=612_000, says="612.000 kWh is more than 500 kWh")
    ledger.add_session(now, state="rejected", reason="value_is_invalid", energy_wh=12_004)
    evidence = {
        "source": "meter_value",
        "stop_wh": 41_500,
        "at": (now - timedelta(hours=2)).isoformat(),
        "read_at": now.isoformat(),
    }
    stuck = ledger.add_session(now, stopped_ago=None, state="stuck", evidence=evidence)
    ChargingSession.objects.filter(pk=stuck.pk).update(started_at=now - timedelta(hours=5))


def test_what_lago_does_not_count_and_what_stops_money_is_seen_on_every_screen(visit, now):
    ledger.add_worker(now, seen_ago=-timedelta(minutes=10))
    uncounted(
        now,
        says="Lago counts 10.000 kWh of ev_charging_kwh for sub-alice from 2026-02-25 to 2026-03-24, and was sent "
        "18.000 kWh by us and nothing by others",
    )
    for condition, says in (
        ("steve_failing", "StEvE answered 502 Bad Gateway at https://steve.example.org/steve/api/v1"),
        (
            "events_turned_up",
            "1 usage event that was given up is in Lago after all: steve:main:7-0123abcd:1.",
        ),
        (
            "not_confirmed",
            "Lago accepted 1 usage event with 8.000 kWh over a day ago and does not count it.",
        ),
    ):
        Alert.objects.create(
            source_id="main", condition=condition, says=says, do="Look there: ocpp-billing doctor.",
            opened_at=now - timedelta(hours=3),
        )  # fmt: skip
    page = visit("/attention", role=Role.OPERATOR)
    expect(page.get_by_role("region", name="StEvE cannot be read")).to_contain_text("502 Bad Gateway")
    expect(page.get_by_role("link", name="Look at it")).to_be_visible()
    check_every_look(page)
    page = visit("/sync", role=Role.OPERATOR)
    expect(page.get_by_text("What Lago took cannot be confirmed")).to_be_visible()
    check_every_look(page)


def test_an_operator_settles_a_cause_and_takes_an_order_back(visit, now):
    fill(now)
    page = visit("/attention", role=Role.OPERATOR)
    expect(page.get_by_role("link", name="Map TAG-7 → 3 sessions, 54.129 kWh are billed")).to_be_visible()
    check_every_look(page)
    page.get_by_role("link", name="Implausible").click()
    check_every_look(page)
    first = page.get_by_role("checkbox").first
    first.check()
    first.focus()
    held(now, "implausible", energy_wh=700_000, says="700.000 kWh is more than 500 kWh")
    expect(page.get_by_text("700.000 kWh is more than 500 kWh")).to_be_visible(timeout=15_000)
    ticked = page.locator("input:checked")
    expect(ticked).to_have_count(1)
    expect(ticked).to_be_focused()
    page.get_by_role("group", name="Acts for the chosen sessions").get_by_role(
        "button", name="Exclude"
    ).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Exclude: 1 session")
    check_every_look(page)
    page.get_by_label("Note").fill("a test bench")
    page.get_by_role("button", name="Exclude: 1 session").click()
    done = page.get_by_role("list", name="Just done")
    expect(done).to_contain_text("Excluded: Session")
    expect(page.get_by_role("checkbox")).to_have_count(2)
    done.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("Taken back: 1 session.")).to_be_visible()
    assert Ruling.objects.get().revoked_at is not None


def tab_to(page, control):
    """Press Tab until ``control`` has the focus, and see that it shows it."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if control.evaluate("control => control === document.activeElement"):
            break
    expect(control).to_be_focused()
    assert control.evaluate(
        "control => getComputedStyle(control).outlineStyle"
    ) == "solid" or control.evaluate("control => getComputedStyle(control).boxShadow") not in {"none", ""}


def test_a_session_is_excluded_without_a_mouse(visit, now):
    """The first half in light, the second in dark."""
    fill(now)
    page = visit("/attention", role=Role.OPERATOR)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    account = page.get_by_role("button", name="Account of")
    tab_to(page, account)
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("button", name="Dark"))
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("data-bs-theme", "dark")
    expect(page.get_by_role("button", name="Dark")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Dark")).to_be_hidden()
    expect(account).to_be_focused()
    tab_to(page, page.get_by_role("link", name="Implausible"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Implausible")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    first = page.get_by_role("checkbox").first
    tab_to(page, first)
    page.keyboard.press("Space")
    expect(first).to_be_checked()
    menu = page.locator("summary.btn").first
    tab_to(page, menu)
    page.keyboard.press("Enter")
    exclude = page.locator(".more-acts[open]").get_by_role("link", name="Exclude")
    tab_to(page, exclude)
    page.keyboard.press("Escape")
    expect(exclude).to_be_hidden()
    expect(menu).to_be_focused()
    chosen = page.get_by_role("group", name="Acts for the chosen sessions")
    tab_to(page, chosen.get_by_role("button", name="Exclude"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_label("Note"))
    page.keyboard.type("a test bench")
    tab_to(page, page.get_by_role("button", name="Exclude: 1 session"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("list", name="Just done")).to_contain_text("Excluded: Session")


def test_every_act_has_a_page_that_works_without_javascript(visit, now):
    fill(now)
    page = visit("/attention/held/implausible", size="phone", role=Role.OPERATOR, javascript=False)
    page.get_by_role("link", name="Accept", exact=True).first.click()
    page.get_by_label("Note").fill("a bus depot")
    page.get_by_role("button", name="Accept").click()
    expect(page.get_by_text("is accepted.")).to_be_visible()
    page.goto("/attention/stuck/-")
    page.locator("summary.btn").first.click()
    page.get_by_role("link", name="Exclude").first.click()
    expect(page.get_by_text("Exclude session")).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    page.get_by_role("link", name="Enter a reading").click()
    page.get_by_label("Where the reading comes from").fill("photo of the meter")
    page.get_by_role("button", name="Show what it gives").click()
    expect(page.get_by_text("The session then delivered")).to_be_visible()
    page.get_by_role("button", name="Enter a reading").click()
    expect(page.get_by_text("is entered.")).to_be_visible()


def test_the_pages_of_acts_look_right(visit, now):
    fill(now)
    page = visit("/attention/stuck/-", role=Role.OPERATOR)
    page.locator("summary.btn").click()
    check_accessibility(page)
    page.get_by_role("link", name="Enter a reading").click()
    check_every_look(page)
    page.goto("/attention/act?act=assign&state=held&reason=unmapped_tag&next=/attention")
    check_every_look(page)
    refund = held(now, "refund_by_credit_note", customer="alice", energy_wh=1_000, says="the invoice is out")
    for act in ("credit", "exclude"):
        page.goto(f"/sessions/{refund.pk}/{act}")
        expect(page.get_by_label("Note", exact=True)).to_be_visible()
        check_accessibility(page)


def test_an_order_that_some_sessions_refuse_says_which_and_why(visit, now):
    fill(now)
    page = visit("/attention/act?act=exclude&state=held&reason=implausible", role=Role.OPERATOR)
    changed = ChargingSession.objects.filter(reason="implausible").order_by("pk").first()
    ChargingSession.objects.filter(pk=changed.pk).update(revision=2)
    page.get_by_label("Note").fill("a test bench")
    page.get_by_role("button", name="Exclude: 2 sessions").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Exclude: 1 session was left as it is")
    expect(page.get_by_text("has changed meanwhile")).to_be_visible()
    check_every_look(page)


def test_an_empty_inbox_teaches(visit, now):
    ledger.add_worker(now)
    page = visit("/attention", role=Role.VIEWER)
    expect(page.get_by_role("heading", name="Nothing waits for you")).to_be_visible()
    check_every_look(page)
