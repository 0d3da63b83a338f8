"""Lists of sessions and usage events: filters, totals, pages that hold still, files that no formula survives."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import io
import re
from datetime import UTC, datetime, timedelta

import pytest
from django.test import AsyncRequestFactory
from hypothesis import given, strategies

from ocpp_billing.accounts.models import Role
from ocpp_billing.api.pages import csv_file
from ocpp_billing.billing.models import Decision, UsageEvent
from ocpp_billing.charging.models import ChargingSession, IdTag, Source
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.spreadsheet import FORMULA_STARTS, read_cell, write_cell
from tests.portal import ledger

pytestmark = pytest.mark.django_db

TAG = "DE-ABC-TAG-7F3A"


def all_pages(call, path, between=lambda: None):
    """Every item of a list, page by page; ``between`` happens after each page."""
    joint = "&" if "?" in path else "?"
    items, cursor = [], None
    while True:
        _, page = call("GET", path if cursor is None else f"{path}{joint}cursor={cursor}")
        items += page["items"]
        cursor = page["next"]
        if cursor is None:
            return items
        between()


# -- pages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/sessions?limit=3", "/billing-events?limit=3"])
def test_pages_hold_still_while_rows_arrive_and_change_their_state(as_token, now, path):
    call = as_token(Role.VIEWER)
    for number in range(10):
        # We heard of the newer ones first, as in the first synchronization.
        ledger.add_session(now, stopped_ago=timedelta(hours=number), state="accepted", steve_id=1000 - number)
    there = [item["id"] for item in all_pages(call, path)]
    assert there == sorted(there, reverse=path.startswith("/billing-events"))
    assert len(there) == 10

    def meanwhile():
        ledger.add_session(now, stopped_ago=timedelta(days=9), state="accepted")
        UsageEvent.objects.update(state="confirmed")
        ChargingSession.objects.update(state="confirmed", stopped_at=now - timedelta(days=3))

    assert [item["id"] for item in all_pages(call, path, meanwhile)] == there


def test_runs_and_tags_hold_still_too(as_token, now):
    call = as_token(Role.VIEWER)
    for number in range(5):
        ledger.add_run(now, ago=timedelta(hours=number))
        ledger.add_tag(f"TAG-{number}")

    runs = all_pages(call, "/sync/runs?limit=2", lambda: ledger.add_run(now, ago=timedelta(days=1)))
    tags = all_pages(call, "/tags?limit=2")

    assert len({run["id"] for run in runs}) == len(runs) == 5
    assert len({tag["id_tag"] for tag in tags}) == len(tags) == 5


def test_a_cursor_of_another_list_is_refused(as_token, now):
    call = as_token(Role.VIEWER)
    for _ in range(2):
        ledger.add_session(now)
    _, page = call("GET", "/sessions?limit=1")

    assert call("GET", f"/billing-events?cursor={page['next']}")[0] == 422


def test_totals_are_of_the_whole_filter_and_come_with_the_first_page(as_token, now):
    call = as_token(Role.VIEWER)
    for energy_wh in (1_000, 2_000, -500):
        ledger.add_session(now, energy_wh=energy_wh, reason="negative_energy" if energy_wh < 0 else None)

    _, first = call("GET", "/sessions?limit=1")
    _, second = call("GET", f"/sessions?limit=1&cursor={first['next']}")

    assert first["totals"] == {"rows": 3, "energy_wh": 3_000}
    assert second["totals"] is None


def test_a_void_event_is_in_no_list_and_no_total(as_token, now):
    session = ledger.add_session(now, state="queued", energy_wh=5_000)
    session.events.update(state="void")
    ledger.add_event(session, now, energy_wh=7_000, state="queued")

    _, body = as_token(Role.VIEWER)("GET", "/billing-events")

    assert [item["energy_wh"] for item in body["items"]] == [7_000]
    assert body["totals"] == {"rows": 1, "energy_wh": 7_000}


# -- filters -----------------------------------------------------------------------------------------


def test_a_range_is_half_open_and_a_date_is_midnight_in_the_organisations_zone(as_token, now, settings):
    settings.CONFIG = dataclasses.replace(settings.CONFIG, sync_timezone="Europe/Berlin")
    # 1 July in Berlin begins at 22:00 UTC on 30 June.
    for at in (datetime(2026, 6, 30, 21, 59, 59, tzinfo=UTC), datetime(2026, 6, 30, 22, tzinfo=UTC)):
        ledger.add_session(at, stopped_ago=timedelta(), state="accepted")
    call = as_token(Role.VIEWER)

    for path in ("/sessions", "/billing-events"):
        assert call("GET", f"{path}?from=2026-07-01")[1]["totals"]["rows"] == 1, path
        assert call("GET", f"{path}?to=2026-07-01")[1]["totals"]["rows"] == 1, path
        assert call("GET", f"{path}?from=2026-06-30T22:00:00Z")[1]["totals"]["rows"] == 1, path


def test_a_reading_counts_as_the_stop(as_token, now):
    session = ledger.add_session(now, stopped_ago=None, state="stuck")
    ChargingSession.objects.filter(pk=session.pk).update(reading_stop_wh=9_000, reading_stopped_at=now)

    _, body = as_token(Role.VIEWER)("GET", f"/sessions?from={now - timedelta(hours=1):%FT%TZ}")

    assert [(item["stop_wh"], item["energy_wh"]) for item in body["items"]] == [(9_000, 8_000)]


def test_sessions_are_found_by_state_reason_tag_box_and_number(as_token, now):
    ledger.add_session(now, tag="TAG-ALICE", reason="unmapped_tag")
    other = ledger.add_session(now, tag="TAG-BOB", state="accepted")
    call = as_token(Role.OPERATOR)

    def found(query):
        return [item["id_tag"] for item in call("GET", f"/sessions?{query}")[1]["items"]]

    assert found("state=held") == ["TAG-ALICE"]
    assert found("state=held&state=accepted") == ["TAG-BOB", "TAG-ALICE"]
    assert found("reason=unmapped_tag") == ["TAG-ALICE"]
    assert found("tag=tag-alice") == ["TAG-ALICE"]
    assert found(f"charge_box={other.charge_box_id}") == ["TAG-BOB"]
    assert found(f"steve_id={other.steve_id}") == ["TAG-BOB"]
    assert found("tag=TAG") == []


def test_sessions_are_found_by_who_pays_as_the_event_says_or_else_the_last_decision(as_token, now):
    billed = ledger.add_session(now, state="accepted")
    held = ledger.add_session(now, reason="late_period")
    Decision.objects.create(
        session=held,
        revision=1,
        outcome="hold",
        energy_wh=1,
        decided_at=now,
        external_customer_id="held-customer",
    )
    call = as_token(Role.VIEWER)

    assert [item["id"] for item in call("GET", "/sessions?customer=customer")[1]["items"]] == [billed.pk]
    assert [item["id"] for item in call("GET", "/sessions?customer=held-customer")[1]["items"]] == [held.pk]
    assert [
        item["session_id"] for item in call("GET", "/billing-events?subscription=subscription")[1]["items"]
    ] == [billed.pk]


def test_another_steve_is_not_shown(as_token, now):
    session = ledger.add_session(now, state="accepted")
    Source.objects.create(name="other")
    ChargingSession.objects.update(source_id="other")
    UsageEvent.objects.update(source_id="other")
    call = as_token(Role.ADMIN)

    assert call("GET", "/sessions")[1]["items"] == []
    assert call("GET", "/billing-events")[1]["items"] == []
    assert call("GET", f"/sessions/{session.pk}")[0] == 404
    assert call("POST", f"/held/{session.pk}/accept", {})[0] == 404


def test_held_sessions_are_listed_with_their_reason_in_words(as_token, now):
    session = ledger.add_session(now, reason="implausible")
    Decision.objects.create(
        session=session,
        revision=1,
        outcome="hold",
        reason="implausible",
        says="612.0 kWh are more than 500 kWh",
        energy_wh=1,
        decided_at=now,
    )
    ledger.add_session(now, stopped_ago=None, state="stuck", evidence={"source": "none", "stop_wh": None})
    call = as_token(Role.VIEWER)

    (held,) = call("GET", "/held")[1]["items"]
    (stuck,) = call("GET", "/held?state=stuck")[1]["items"]

    assert (held["reason"], held["says"]) == ("implausible", "612.0 kWh are more than 500 kWh")
    assert stuck["evidence"] == {"source": "none", "stop_wh": None}


def test_what_steve_shows_no_longer_is_listed_with_since_when(as_token, now):
    gone = ledger.add_session(now, state="confirmed")
    ledger.add_session(now, state="confirmed")
    ChargingSession.objects.filter(pk=gone.pk).update(vanished_at=now, superseded_at=now)
    IdTag.objects.update(vanished_at=now)
    call = as_token(Role.VIEWER)
    listed = {item["id"]: item for item in call("GET", "/sessions")[1]["items"]}
    flagged = {number: bool(item["vanished_at"] and item["superseded_at"]) for number, item in listed.items()}
    assert flagged == {number: number == gone.pk for number in listed}
    assert call("GET", f"/sessions/{gone.pk}")[1]["vanished_at"] == listed[gone.pk]["vanished_at"]
    assert all(item["vanished_at"] for item in call("GET", "/tags")[1]["items"])
    rows = rows_of(as_token(Role.VIEWER).raw("GET", "/sessions?format=csv"))
    assert {int(row["id"]): bool(row["vanished_at"]) for row in rows} == flagged


# -- what viewers see --------------------------------------------------------------------------------


def tagged_ledger(now):
    session = ledger.add_session(now, tag=TAG, state="accepted")
    ChargingSession.objects.filter(pk=session.pk).update(raw={"ocppIdTag": TAG, "id": 1})
    session.decisions.update(says=f"tag {TAG} is somebody's", note=f"seen on {TAG}")
    IdTag.objects.filter(text=TAG).update(note=f"the van's {TAG}")
    session.events.update(
        payload='{"properties": {"id_tag": "%s", "kwh": "1.0"}}' % TAG,  # noqa: UP031
        answer={"error": f"no {TAG.lower()}"},
    )
    ledger.add_mapping(now, tag=TAG)
    TagMapping.objects.update(note=f"printed on it: {TAG}")
    return session


def test_viewers_see_of_a_tag_its_last_four_characters_wherever_it_stands(as_token, now):
    session = tagged_ledger(now)
    event = session.events.get()
    call = as_token(Role.VIEWER)

    for path in (
        "/sessions",
        "/sessions?format=csv",
        f"/sessions/{session.pk}",
        "/billing-events",
        "/billing-events?format=csv",
        f"/billing-events/{event.pk}",
        "/mappings",
        "/tags",
        "/balance/by/tag",
    ):
        text = call.raw("GET", path).getvalue().decode()
        assert "7F3A" in text, path
        assert TAG.casefold() not in text.casefold(), path
        assert "DE-ABC" not in text, path


def test_operators_see_whole_tags(as_token, now):
    session = tagged_ledger(now)

    _, body = as_token(Role.OPERATOR)("GET", f"/sessions/{session.pk}")

    assert body["id_tag"] == body["raw"]["ocppIdTag"] == TAG
    assert body["events"][0]["payload"]["properties"]["id_tag"] == TAG
    assert body["decisions"][0]["says"] == f"tag {TAG} is somebody's"


@pytest.mark.parametrize(
    "path", ["/sessions?tag=", "/billing-events?tag=", "/mappings?tag=", "/tags?search="]
)
def test_a_viewer_finds_a_tag_by_its_last_four_characters_and_cannot_feel_for_the_rest(as_token, now, path):
    tagged_ledger(now)
    ledger.add_session(now, tag="ABCD", state="accepted")
    ledger.add_mapping(now, tag="ABCD")
    call = as_token(Role.VIEWER)

    assert len(call("GET", f"{path}7f3a")[1]["items"]) == 1
    for feeler in ("-7F3A", "F3A", "TAG-7F3A", TAG, "DE-A", "%25", "____", "ABCD"):
        assert call("GET", f"{path}{feeler}")[1]["items"] == [], feeler


def test_a_note_of_a_mapping_which_may_name_any_tag_is_not_for_viewers(as_token, now):
    mapping = ledger.add_mapping(now, tag=TAG)
    TagMapping.objects.update(note="instead of DE-LOST-0815")
    for role, note in ((Role.OPERATOR, "instead of DE-LOST-0815"), (Role.VIEWER, "")):
        call = as_token(role)
        assert call("GET", f"/mappings/{mapping.pk}")[1]["note"] == note
        assert call("GET", "/mappings")[1]["items"][0]["note"] == note


def test_lines_of_equal_energy_do_not_stand_in_the_order_of_tags_for_viewers(as_token, now):
    for tag in ("A-0003", "B-0002", "C-0001"):
        ledger.add_session(now, state="confirmed", energy_wh=1_000, tag=tag)
    for role, keys in (
        (Role.OPERATOR, ["A-0003", "B-0002", "C-0001"]),
        (Role.VIEWER, ["…0001", "…0002", "…0003"]),
    ):
        lines = as_token(role)("GET", "/balance/by/tag")[1]["lines"]
        assert [line["key"] for line in lines] == keys


def test_words_about_an_identity_conflict_name_other_tags_and_are_not_for_viewers(as_token, now):
    session = ledger.add_session(now, tag=TAG, reason="identity_conflict")
    Decision.objects.create(
        session=session,
        revision=1,
        outcome="hold",
        reason="identity_conflict",
        says="StEvE's tag number 7 was SECRET-TAG-1 and is now SECRET-TAG-2",
        energy_wh=1,
        decided_at=now,
    )
    session.id_tag.identity_conflict = "StEvE's tag number 7 was SECRET-TAG-1"
    session.id_tag.save()

    for path in ("/sessions", f"/sessions/{session.pk}", "/held", "/tags"):
        assert "SECRET" not in as_token(Role.VIEWER).raw("GET", path).content.decode(), path
        assert "SECRET" in as_token(Role.OPERATOR).raw("GET", path).content.decode(), path


# -- files -------------------------------------------------------------------------------------------


def rows_of(response):
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(io.StringIO(response.getvalue().decode())))


@pytest.mark.parametrize("ask", [{"path": "?format=csv"}, {"accept": "text/csv"}])
@pytest.mark.parametrize(("path", "name"), [("/sessions", "sessions"), ("/billing-events", "billing-events")])
def test_a_file_holds_all_rows_of_the_filter(as_token, now, monkeypatch, ask, path, name):
    monkeypatch.setattr("ocpp_billing.billing.listing.CHUNK_ROWS", 2)
    for number in range(5):
        ledger.add_session(now, stopped_ago=timedelta(hours=number), energy_wh=1_234, state="accepted")
    ledger.add_session(now, energy_wh=9, state="queued")
    address = path + ask.get("path", "?") + "&state=accepted"

    response = as_token(Role.VIEWER).raw("GET", address, Accept=ask.get("accept", "*/*"))

    assert response.headers["Content-Disposition"] == f'attachment; filename="{name}.csv"'
    rows = rows_of(response)
    assert [row["energy_wh"] for row in rows] == ["1234"] * 5
    assert {row["energy_kwh"] for row in rows} == {"1.234"}


def test_no_formula_survives_in_a_file(as_token, now):
    nasty = ['=HYPERLINK("http://evil.example";"x")', "+1", "-1", "@SUM(A1)", "\t=1", " =1", "＝1"]  # noqa: RUF001
    for text in nasty:
        session = ledger.add_session(now, state="accepted", tag=f"{text}-tag")
        session.events.update(external_customer_id=text)
        ChargingSession.objects.filter(pk=session.pk).update(charge_box_id=text)

    for path in ("/sessions", "/billing-events"):
        rows = rows_of(as_token(Role.OPERATOR).raw("GET", f"{path}?format=csv"))
        assert [read_cell(row["customer_id"]) for row in rows] == list(reversed(nasty))
        for row in rows:
            for column in ("id_tag", "customer_id", "charge_box_id"):
                assert row[column].startswith("'"), row


def test_a_negative_correction_stays_a_number(as_token, now):
    session = ledger.add_session(now, state="accepted", energy_wh=5_000)
    ledger.add_event(session, now, energy_wh=-1_500, state="queued")

    rows = rows_of(as_token(Role.VIEWER).raw("GET", "/billing-events?format=csv"))

    assert [(row["energy_wh"], row["energy_kwh"]) for row in rows] == [("-1500", "-1.500"), ("5000", "5.000")]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a;=1+1", "a;'=1+1"),
        ("a; \t=1+1", "a; \t'=1+1"),
        ("a;-1;+1;@x", "a;'-1;'+1;'@x"),
        ("a\r\n=1+1", "a\r\n'=1+1"),
        ('a;"=1+1', "a;'\"=1+1"),
        (";＝1", ";'＝1"),  # noqa: RUF001
        ("a;'b", "a;''b"),
        ("a;b-c=d", "a;b-c=d"),
        ("two\r\nlines; and more", "two\r\nlines; and more"),
    ],
)
def test_where_semicolons_part_cells_no_formula_begins_either(text, written):
    assert write_cell(text) == written
    assert read_cell(written) == text


@given(strategies.text(alphabet=";\t\r\n \"'=+-@＝x", max_size=12))  # noqa: RUF001
def test_whatever_a_cell_holds_is_read_back_and_no_cell_of_it_is_a_formula(text):
    written = write_cell(text.strip())
    assert read_cell(written) == text.strip()
    first, *others = re.split("[;\t\r\n]", written)
    for cell in (first.lstrip(" "), *(other.lstrip(' "') for other in others)):
        assert not cell.startswith(("=", "+", "-", "@", "＝"))  # noqa: RUF001


@pytest.mark.parametrize("start", [*FORMULA_STARTS, " =", "plain", ""])
def test_a_cell_is_read_back_as_it_was(start):
    text = f"{start}x"
    assert read_cell(write_cell(text)) == text


def test_a_file_is_streamed_by_the_asgi_server():
    """Rows are read in threads, a chunk at a time."""
    request = AsyncRequestFactory().get("/api/sessions")
    response = csv_file(request, "x.csv", (f"line {number}\r\n" for number in range(2_500)))

    async def read():
        return [chunk async for chunk in response]

    assert response.is_async
    chunks = asyncio.run(read())
    assert len(chunks) == 3
    assert b"".join(chunks).decode().count("\r\n") == 2_500
