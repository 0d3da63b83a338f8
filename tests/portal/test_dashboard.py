"""The dashboard: true figures, words for every cause, and Sync now."""

from datetime import UTC, datetime, timedelta

import pytest

from ocpp_billing.accounts.models import AuditEntry, Role
from ocpp_billing.billing.balance import Amount, counted_balance, read_balance
from ocpp_billing.billing.models import DeliveryControl
from ocpp_billing.portal import queries
from ocpp_billing.sync.models import SyncRun
from tests.portal import ledger

pytestmark = pytest.mark.django_db


@pytest.fixture
def shown(signed_in):
    """The dashboard's text without tags, for a role."""
    import re

    def show(role=Role.ADMIN):
        html = signed_in(role).get("/").content.decode()
        text = re.sub(r"<(title|desc)\b.*?</\1>|<[^>]+>", " ", html.partition("<body")[2], flags=re.DOTALL)
        return " ".join(text.split())

    return show


def test_a_balanced_ledger_says_so(shown, configured, now):
    ledger.fill(now)
    text = shown()
    assert "Every watt-hour accounted for unexplained 0.000 kWh" in text


def test_a_difference_is_the_title(shown, now):
    session = ledger.add_session(now, energy_wh=5_000, reason="unmapped_tag")
    type(session).objects.update(rest_wh=3_766)
    text = shown()
    assert "1.234 kWh not accounted for" in text
    assert "Every watt-hour accounted for" not in text


def test_each_state_shows_its_sessions_and_kwh(shown, now):
    ledger.add_session(now, energy_wh=12_345, state="confirmed")
    ledger.add_session(now, energy_wh=1_000, state="confirmed")
    ledger.add_session(now, energy_wh=700, state="held", reason="late_period")
    text = shown()
    assert "Confirmed Lago counts it and will invoice it 2 13.345" in text
    assert "Held Not billed until its cause is resolved 1 0.700" in text
    assert "Read 3 14.045" in text


def test_negative_and_unreadable_rows_have_lines_of_their_own(shown, now):
    from ocpp_billing.charging.models import MalformedRow

    ledger.add_session(now, energy_wh=-812, reason="negative_energy")
    MalformedRow.objects.create(source=ledger.add_source(), digest=b"x" * 32, raw={}, reason="no id")
    text = shown()
    assert "1 session has a negative energy (\N{MINUS SIGN}0.812 kWh); it counts 0 in every sum." in text
    assert "1 row of StEvE could not be read; it is set aside and in no sum." in text


def test_what_needs_attention_is_grouped_by_cause_most_energy_first(shown, now):
    ledger.add_session(now, energy_wh=2_000, reason="unmapped_tag")
    ledger.add_session(now, energy_wh=3_000, reason="unmapped_tag")
    ledger.add_session(now, energy_wh=9_000, state="rejected", reason="value_is_invalid")
    text = shown().partition("Needs attention")[2]
    first, second = text.index("Rejected by Lago: value_is_invalid"), text.index("Tag without a customer")
    assert first < second
    assert "5.000 kWh 2 sessions for 1 h" in text
    assert "Nobody is invoiced for this energy." in text
    assert "Map the tag to a Lago customer" in text


def test_a_stuck_session_shows_what_its_meter_last_said(now):
    ledger.add_session(now, stopped_ago=None, state="stuck", evidence={"source": "x", "stop_wh": 41_500})
    ledger.add_session(now, stopped_ago=None, state="stuck", evidence={"source": "none", "stop_wh": None})
    ledger.add_session(now, stopped_ago=None, state="stuck", evidence=None)
    (group,) = queries.attention_groups("main", counted_balance("main"))
    assert (group.sessions, group.energy_wh, group.evidence_wh) == (3, 0, 40_500)


def test_attention_adds_up_to_the_balance_but_for_what_a_run_decides(now):
    ledger.fill(now)
    ledger.add_session(now, energy_wh=7_000, state="held", reason="undecided")
    session = ledger.add_session(now, energy_wh=5_000, state="confirmed")
    ledger.add_event(session, now, energy_wh=-400, state="held", reason="refund_by_credit_note")
    type(session).objects.filter(pk=session.pk).update(state="held", reason="refund_by_credit_note")
    balance, groups = read_balance("main"), queries.attention_groups("main", counted_balance("main"))
    assert "undecided" not in {group.reason for group in groups}
    for state in ("held", "stuck", "rejected"):
        found = [group for group in groups if group.state == state]
        left_out = Amount(1, 7_000) if state == "held" else Amount()
        assert sum(group.sessions for group in found) + left_out.sessions == balance.states[state].sessions
        assert sum(group.energy_wh for group in found) + left_out.energy_wh == balance.states[state].energy_wh


def test_nothing_to_do_is_said(shown, now):
    ledger.add_session(now, state="confirmed")
    assert "Nothing waits for a person." in shown()


# -- today, this week, the days of the chart: in the organisation's zone ------------------------------


def test_today_and_the_week_begin_at_midnight_of_the_zone():
    from zoneinfo import ZoneInfo

    berlin = ZoneInfo("Europe/Berlin")
    now = datetime(2026, 11, 23, 11, 0, tzinfo=UTC)  # a Monday, 12:00 in Berlin
    midnight = datetime(2026, 11, 22, 23, 0, tzinfo=UTC)
    ledger.add_session(now, stopped_ago=now - midnight, energy_wh=1_000)
    ledger.add_session(now, stopped_ago=now - midnight + timedelta(seconds=1), energy_wh=20_000)

    today, week = queries.today_and_week("main", now, berlin)
    assert (today.sessions, today.energy_wh) == (1, 1_000)
    assert (week.sessions, week.energy_wh) == (1, 1_000)
    days, energies_wh = queries.energy_by_day("main", now, berlin, 30)
    assert energies_wh == {days[-1]: {"held": 1_000}, days[-2]: {"held": 20_000}}


def test_the_week_reaches_back_to_monday_and_ignores_clocks_of_the_future():
    now = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)  # a Thursday
    from zoneinfo import ZoneInfo

    ledger.add_session(now, stopped_ago=timedelta(days=3), energy_wh=4_000)
    ledger.add_session(now, stopped_ago=timedelta(days=4), energy_wh=50_000)
    ledger.add_session(now, stopped_ago=-timedelta(days=1), energy_wh=600_000)
    ledger.add_session(now, stopped_ago=timedelta(hours=1), energy_wh=-300)
    today, week = queries.today_and_week("main", now, ZoneInfo("UTC"))
    assert (today.sessions, today.energy_wh) == (1, 0)
    assert (week.sessions, week.energy_wh) == (2, 4_000)


def test_a_day_of_a_changed_clock_is_one_day():
    from zoneinfo import ZoneInfo

    berlin = ZoneInfo("Europe/Berlin")
    now = datetime(2026, 10, 25, 22, 59, tzinfo=UTC)  # 23:59 on the day of 25 hours
    for hours in range(25):
        ledger.add_session(now, stopped_ago=timedelta(hours=hours), energy_wh=1_000)
    today, _ = queries.today_and_week("main", now, berlin)
    _, energies_wh = queries.energy_by_day("main", now, berlin, 1)
    assert today.sessions == 25
    assert list(energies_wh.values()) == [{"held": 25_000}]


def test_the_chart_has_a_table_with_every_day(shown, now):
    ledger.add_session(now, stopped_ago=timedelta(0), energy_wh=7_654, state="accepted")
    assert f"Day Accepted {now:%-d %b} 7.654" in shown()


def test_a_correction_counts_on_the_day_of_its_session(now):
    from zoneinfo import ZoneInfo

    session = ledger.add_session(now, stopped_ago=timedelta(days=3), energy_wh=5_000, state="confirmed")
    ledger.add_event(session, now, energy_wh=250, state="queued")
    days, energies_wh = queries.energy_by_day("main", now, ZoneInfo("UTC"), 30)
    assert energies_wh == {days[-4]: {"confirmed": 5_000, "queued": 250}}


# -- mappings -----------------------------------------------------------------------------------------


def test_mappings_are_counted_by_tag_and_history_does_not_count(now):
    ledger.add_mapping(now, tag="A", since=timedelta(days=9), until=timedelta(days=5))
    ledger.add_mapping(now, tag="A", since=timedelta(days=5), active=False)
    ledger.add_mapping(now, tag="B", since=timedelta(days=9), until=timedelta(days=5))
    ledger.add_mapping(now, tag="C")
    ledger.add_mapping(now, tag="D", since=-timedelta(days=1))
    counted = queries.count_mappings("main", now)
    assert (counted.total, counted.active) == (3, 1)


# -- runs, freshness, banners ---------------------------------------------------------------------------


def test_recent_runs_say_what_they_did_and_what_went_wrong(shown, now):
    ledger.fill(now)
    text = shown().partition("Recent runs")[2]
    assert (
        "Completed 40 s ago By hand, ada@example.org 3.2 s +3 sessions · 2 changed · 1 held · 2 accepted"
        in text
    )
    assert "Partial 42 min ago Schedule 0.4 s +4 sessions · 3 accepted · 1 rejected" in text
    assert "nothing new" in text
    assert "StEvE did not answer within 10 s. Check STEVE_API_URL." in text


def test_freshness_names_the_last_run_the_next_and_the_worker(shown, configured, now):
    ledger.add_run(now, ago=timedelta(minutes=5))
    ledger.add_run(now, ago=timedelta(minutes=1), status="failed")
    worker = ledger.add_worker(now)
    text = shown()
    assert f"Synced 4 min ago next {worker.next_run_at:%H:%M} worker alive" in text
    assert "The worker is silent" not in text


def test_a_running_synchronization_is_said(shown, now):
    ledger.add_run(now, ago=timedelta(seconds=5), status="running")
    assert "Syncing now" in shown()


def test_a_silent_worker_and_a_pause_stand_across_the_top(shown, configured, now):
    ledger.add_worker(now, seen_ago=timedelta(minutes=2))
    DeliveryControl.objects.create(source=ledger.add_source(), paused_at=now, paused_by="Ada")
    text = shown()
    assert "Delivery is paused since" in text
    assert "The worker is silent since" in text
    assert "Shadow mode" not in text


def test_going_live_ends_the_shadow(shown, now):
    assert "Shadow mode" in shown()
    DeliveryControl.objects.create(source=ledger.add_source(), live_from=now)
    assert "Shadow mode" not in shown()


# -- nothing there yet ----------------------------------------------------------------------------------


def test_an_empty_installation_leads_to_its_set_up(shown):
    text = shown()
    assert "No charging session yet" in text
    assert "Set-up: 0 of 4 steps done" in text
    assert "Next: read the sessions from StEvE." in text


def test_a_configured_installation_without_sessions_says_what_comes(shown, configured):
    text = shown()
    assert "The first synchronization reads every session StEvE knows." in text


# -- Sync now -------------------------------------------------------------------------------------------


def test_an_operator_asks_for_a_run_and_is_told_what_happens(signed_in, now):
    ledger.add_worker(now)
    answer = signed_in(Role.OPERATOR).post("/sync/now", follow=True)
    run = SyncRun.objects.get()
    assert (run.status, run.trigger, run.requested_by) == ("requested", "manual", "operator@example.org")
    assert "The synchronization starts now." in answer.content.decode()
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.target) == ("sync.requested", f"run {run.pk}")


def test_without_a_worker_nobody_is_made_to_believe_that_it_runs(signed_in):
    answer = signed_in(Role.ADMIN).post("/sync/now", headers={"HX-Request": "true"})
    assert answer.status_code == 200
    assert "No worker is alive" in answer.content.decode()
    assert "note-warning" in answer.content.decode()
    assert "<html" not in answer.content.decode()


def test_a_viewer_sees_no_button_and_may_not_trigger(signed_in):
    client = signed_in(Role.VIEWER)
    assert "Sync now</button>" not in client.get("/").content.decode()
    assert client.post("/sync/now").status_code == 403
    assert not SyncRun.objects.exists()
    assert not AuditEntry.objects.exists()


def test_a_link_cannot_trigger_a_run(signed_in):
    assert signed_in().get("/sync/now").status_code == 405
    assert not SyncRun.objects.exists()


def test_a_foreign_form_cannot_trigger_a_run(signed_in):
    from django.test import Client

    client = Client(enforce_csrf_checks=True)
    client.cookies = signed_in().cookies
    assert client.post("/sync/now").status_code == 403
    assert not SyncRun.objects.exists()


# -- the live part --------------------------------------------------------------------------------------


def test_a_refresh_gets_the_live_part_with_freshness_and_banners(signed_in, now):
    ledger.fill(now)
    answer = signed_in().get("/", headers={"HX-Request": "true"})
    text = answer.content.decode()
    assert text.lstrip().startswith('<div id="live"')
    assert text.count('hx-swap-oob="true"') == 3  # the third is the count in the menu
    assert "<html" not in text
    assert "HX-Request" in answer.headers["Vary"]
    assert "no-store" in answer.headers["Cache-Control"]
