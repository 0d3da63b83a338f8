"""Billing events: every session with its events, filters in the address, true totals, files for finance."""

import csv
import io
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ocpp_billing.accounts.models import Role
from ocpp_billing.billing.balance import read_balance
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.portal.billing_events import quick_ranges
from tests.portal import ledger

pytestmark = pytest.mark.django_db


@pytest.fixture
def shown(signed_in):
    """The page's text without tags, for a query and a role."""

    def show(query="", role=Role.OPERATOR, status=200):
        answer = signed_in(role).get(f"/billing-events{query}")
        assert answer.status_code == status
        main = answer.content.decode().partition("<main")[2]
        return " ".join(re.sub(r"<[^>]+>", " ", main).split())

    return show


@pytest.fixture
def exported(signed_in):
    def read(query="", role=Role.OPERATOR):
        answer = signed_in(role).get(f"/billing-events?format=csv{query}")
        assert answer.headers["Content-Type"].startswith("text/csv")
        text = b"".join(answer.streaming_content).decode()
        return list(csv.DictReader(io.StringIO(text))), answer

    return read


def corrected(now):
    """10 kWh confirmed, and half a kWh more that waits in the queue."""
    session = ledger.add_session(now, energy_wh=10_000, state="confirmed", tag="TAG-8888")
    ledger.add_event(session, now, energy_wh=500, state="queued")
    ChargingSession.objects.filter(pk=session.pk).update(state="queued", stop_wh=11_500)
    UsageEvent.objects.filter(session=session, n=1).update(lago_event_id="5f0c3c1e-lago")
    return session


def test_a_session_stands_there_with_its_kwh_payer_and_both_ids_of_its_event(shown, now):
    session = corrected(now)
    text = shown()
    assert f"#{session.steve_id}" in text
    assert "steve:main:1-00000000:1" in text
    assert "5f0c3c1e-lago" in text
    assert "TAG-8888" in text
    assert "customer subscription" in text
    assert "10.500" in text


def test_what_steve_shows_no_longer_stands_there_and_says_so_until_it_is_back(shown, now):
    session = ledger.add_session(now, state="confirmed")
    assert "gone from StEvE" not in shown()
    ChargingSession.objects.filter(pk=session.pk).update(vanished_at=now)
    assert "#1 gone from StEvE" in shown()
    ChargingSession.objects.filter(pk=session.pk).update(superseded_at=now)
    assert "#1 its number is another session's now" in shown().replace("&#x27;", "'")
    ChargingSession.objects.filter(pk=session.pk).update(vanished_at=None, superseded_at=None)
    assert "#1 gone" not in shown()


def test_the_totals_of_each_state_are_the_figures_of_the_board(shown, now):
    ledger.fill(now)
    corrected(now)
    balance = read_balance("main")
    for state, amount in balance.states.items():
        if not amount.sessions:
            continue
        kwh = f"{amount.energy_wh // 1000:,}.{amount.energy_wh % 1000:03d}"
        text = shown(f"?state={state}")
        plural = "session" if amount.sessions == 1 else "sessions"
        assert f"{kwh} kWh {amount.sessions} {plural}" in text, state


def test_a_session_in_two_states_is_listed_in_both_and_counted_once(shown, now):
    corrected(now)
    confirmed = shown("?state=confirmed")
    assert "10.000 kWh 0 sessions" in confirmed
    assert "1 more session is listed for a part of its energy and counted elsewhere." in confirmed
    assert "of 10.500" in confirmed
    assert "0.500 kWh 1 session" in shown("?state=queued")


def test_all_that_was_charged_is_proved_to_be_in_the_states(shown, now):
    ledger.fill(now)
    assert "every watt-hour is in one of these states." in shown()
    ChargingSession.objects.filter(reason="late_period").update(rest_wh=1)
    assert "the states hold something else. This is a fault of ours" in shown("?from=2000-01-01")


@pytest.mark.parametrize(
    ("query", "there"),
    [
        ("?reason=unmapped_tag", {1}),
        ("?state=held&reason=late_period", {2}),
        ("?customer=customer", {3}),
        ("?subscription=subscription", {3}),
        ("?tag=tag-b", {2}),
        ("?charge_box=CP-3", {3}),
        ("?state=held", {1, 2}),
        ("?state=held&tag=TAG-C", set()),
    ],
)
def test_each_filter_keeps_what_it_names(shown, now, query, there):
    ledger.add_session(now, reason="unmapped_tag", tag="TAG-A")
    ledger.add_session(now, reason="late_period", tag="TAG-B")
    ledger.add_session(now, state="confirmed", tag="TAG-C")
    assert {int(number) for number in re.findall(r"#(\d+)", shown(query))} == there


def test_days_are_those_of_the_organisation_and_the_last_is_included(shown, at, settings):
    import dataclasses

    settings.CONFIG = dataclasses.replace(settings.CONFIG, sync_timezone="Europe/Berlin")
    now = at(datetime(2026, 11, 26, 12, tzinfo=UTC))
    midnight = datetime(2026, 11, 22, 23, tzinfo=UTC)  # of Monday the 23rd in Berlin
    ledger.add_session(now, stopped_ago=now - midnight)
    ledger.add_session(now, stopped_ago=now - midnight + timedelta(seconds=1))
    assert re.findall(r"#(\d+)", shown("?from=2026-11-23&to=2026-11-23")) == ["1"]
    assert re.findall(r"#(\d+)", shown("?from=2026-11-22&to=2026-11-22")) == ["2"]


def test_quick_ranges():
    ranges = {each.label: (each.first, each.last) for each in quick_ranges(date(2026, 3, 1))}
    assert ranges["Today"] == ("2026-03-01", "2026-03-01")
    assert ranges["This week"] == ("2026-02-23", "2026-03-01")
    assert ranges["This month"] == ("2026-03-01", "2026-03-31")
    assert ranges["Last month"] == ("2026-02-01", "2026-02-28")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("?from=yesterday", "A day such as 2026-11-30."),
        ("?from=0001-01-01", "A day between 1990 and 2200."),
        ("?to=9999-12-31", "A day between 1990 and 2200."),
        ("?from=2026-11-02&to=2026-11-01", "This lies before the first day."),
        ("?state=lost", "not one of the available choices"),
    ],
)
def test_what_is_not_understood_is_marked_and_lists_nothing(shown, now, query, says):
    ledger.add_session(now)
    text = shown(query, status=400)
    assert says in text
    assert "#1" not in text


def test_a_filter_without_a_match_says_how_to_go_on(shown, now):
    ledger.add_session(now)
    assert "No session matches" in shown("?state=rejected")
    assert "Clear the filter" in shown("?state=rejected")


def test_an_empty_ledger_teaches(shown):
    assert "Every session that StEvE knows appears here after the first synchronization" in shown()


def test_pages_go_by_cursor_and_keep_the_filter(signed_in, now):
    for _ in range(60):
        ledger.add_session(now)
    ledger.add_session(now, state="confirmed")
    client = signed_in()
    first = client.get("/billing-events?state=held").content.decode()
    address = re.search(r'href="(\?[^"]*cursor=[^"]*)"', first)[1].replace("&amp;", "&")
    assert "state=held" in address
    second = client.get(f"/billing-events{address}").content.decode()
    numbers = re.findall(r">#(\d+)</a>", first) + re.findall(r">#(\d+)</a>", second)
    assert [int(number) for number in numbers] == list(range(60, 0, -1))


def test_queries_do_not_grow_with_the_rows(signed_in, now):
    client = signed_in()

    def asked():
        with CaptureQueriesContext(connection) as queries:
            assert client.get("/billing-events?state=confirmed").status_code == 200
        return len(queries)

    ledger.add_session(now, state="confirmed")
    few = asked()
    ledger.fill(now)
    assert asked() <= few


# -- viewers -------------------------------------------------------------------------------------------


def test_viewers_see_and_find_tags_by_their_last_four_characters_only(shown, exported, now):
    ledger.add_session(now, tag="SECRET-7F3A")
    assert "…7F3A" in shown(role=Role.VIEWER)
    assert "SECRET" not in shown(role=Role.VIEWER)
    assert "#1" in shown("?tag=7f3a", Role.VIEWER)
    for probe in ("SECRET-7F3A", "F3A", "-7F3A"):
        assert "#1" not in shown(f"?tag={probe}", Role.VIEWER)
    rows, _ = exported(role=Role.VIEWER)
    assert [row["id_tag"] for row in rows] == ["…7F3A"]


# -- files -----------------------------------------------------------------------------------------------


def test_the_file_adds_up_to_what_was_charged(exported, now):
    ledger.fill(now)
    corrected(now)
    rows, _ = exported()
    balance = read_balance("main")

    def total(column, state=None):
        return sum(Decimal(row[column]) for row in rows if row[column] and state in {None, row["state"]})

    assert total("charged_kwh") == total("kwh") == Decimal(balance.read.energy_wh).scaleb(-3)
    for state, amount in balance.states.items():
        assert total("kwh", state) == Decimal(amount.energy_wh).scaleb(-3), state
    billed = balance.states["accepted"].energy_wh + balance.states["confirmed"].energy_wh
    assert total("billed_kwh") == Decimal(billed).scaleb(-3)


def test_the_file_is_the_whole_filter_and_says_which(exported, now):
    for _ in range(60):
        ledger.add_session(now)
    ledger.add_session(now, state="confirmed")
    rows, answer = exported("&state=held")
    assert len(rows) == 60
    assert {row["charged_kwh"] for row in rows} == {""}
    _, answer = exported("&from=2026-10-01&to=2026-10-31")
    assert 'filename="billing-events-2026-10-01-2026-10-31.csv"' in answer.headers["Content-Disposition"]


def test_a_name_that_looks_like_a_formula_stays_text(exported, now):
    ledger.add_session(now, tag='=HYPERLINK("http://evil")')
    rows, _ = exported()
    assert rows[0]["id_tag"] == '\'=HYPERLINK("http://evil")'
