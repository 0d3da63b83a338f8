"""The audit log as a page and as a file: who, what, which, when, before and after."""

import ast
import csv
import html
import io
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest

import ocpp_billing
from ocpp_billing.accounts.audit import record
from ocpp_billing.accounts.models import AuditEntry, Role, User
from ocpp_billing.portal.audit_words import ACTIONS, FACTS, SUBJECTS, changes
from tests.portal.conftest import add_person

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin(signed_in):
    return signed_in(Role.ADMIN)


def text(answer):
    return html.unescape(answer.content.decode())


def rows(answer):
    """The entries that a page shows: the act and what it was done to."""
    found = re.findall(r'cell-title">([^<]*)(?:<span class="sub">([^<]*)<)?', text(answer))
    return [tuple(part for part in pair if part) for pair in found]


@pytest.fixture
def acts():
    operator = add_person(Role.OPERATOR)
    record(
        "mapping.create",
        user=operator,
        target="tag:TAG-7",
        after={"customer_id": "acme", "active": True, "valid_to": None},
        note="as agreed",
    )
    record(
        "mapping.switch_off",
        user=operator,
        target="tag:TAG-7",
        before={"customer_id": "acme", "active": True},
        after={"customer_id": "acme", "active": False},
    )
    record("delivery.pause", actor="command line (root)", target="source:main", after={"reason": "audit"})


def test_each_entry_says_what_changed_in_words(admin, acts):
    page = text(admin.get("/settings/audit"))
    assert rows(admin.get("/settings/audit")) == [
        ("Paused delivery", "source main"),
        ("Switched a mapping off", "tag TAG-7"),
        ("Mapped a tag", "tag TAG-7"),
    ]
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "active: was yes → is now no" in plain
    assert "“as agreed”" in plain
    assert "customer: acme" in plain
    assert "valid to" not in plain


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("who=operator@", ["Switched a mapping off", "Mapped a tag"]),
        ("who=COMMAND LINE", ["Paused delivery"]),
        ("action=mapping.", ["Switched a mapping off", "Mapped a tag"]),
        ("action=mapping.create", ["Mapped a tag"]),
        ("target=tag-7", ["Switched a mapping off", "Mapped a tag"]),
        ("target=tag+TAG-7", ["Switched a mapping off", "Mapped a tag"]),  # as the page calls it
        ("who=operator&target=source", []),
    ],
)
def test_it_is_filtered_by_what_the_address_says(admin, acts, query, expected):
    assert [row[0] for row in rows(admin.get(f"/settings/audit?{query}"))] == expected


def test_days_are_those_of_the_organisations_zone_and_the_last_one_is_whole(admin, acts, settings):
    import dataclasses

    settings.CONFIG = dataclasses.replace(settings.CONFIG, sync_timezone="Europe/Berlin")
    for entry, at in zip(AuditEntry.objects.order_by("pk"), (22, 23, 47), strict=True):
        # 23:00, 00:00 and, a day later, 00:00 in Berlin
        AuditEntry.objects.filter(pk=entry.pk).update(at=datetime(2026, 3, 1 + at // 24, at % 24, tzinfo=UTC))
    assert len(rows(admin.get("/settings/audit?from=2026-03-02&to=2026-03-02"))) == 1
    assert len(rows(admin.get("/settings/audit?from=2026-03-01&to=2026-03-02"))) == 2
    assert len(rows(admin.get("/settings/audit?to=2026-03-01"))) == 1


def test_a_day_that_is_none_is_said_beside_its_field(admin, acts):
    for query, says in (
        ("from=yesterday", "A day such as 2026-11-30."),
        ("to=9999-12-31", "A day between 1990 and 2200."),
        ("from=0001-01-01", "A day between 1990 and 2200."),
    ):
        answer = admin.get(f"/settings/audit?{query}")
        assert answer.status_code == 200
        assert says in text(answer)
    answer = admin.get("/settings/audit.csv?from=yesterday")
    assert answer.headers["Location"] == "/settings/audit?from=yesterday"


def test_the_file_has_every_entry_of_the_filter(admin, acts):
    answer = admin.get("/settings/audit.csv?action=mapping.")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    lines = list(csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode())))
    assert [line["action"] for line in lines] == ["mapping.switch_off", "mapping.create"]
    assert lines[1]["after"] == '{"active": true, "valid_to": null, "customer_id": "acme"}'
    assert lines[1]["who"] == "operator@example.org"


def test_a_formula_in_the_file_is_only_text(admin, acts):
    record("mapping.note", actor="=HYPERLINK(1)", target="tag:+1", note="@SUM(A1)")
    answer = admin.get("/settings/audit.csv?who=HYPERLINK")
    (line,) = csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode()))
    assert (line["who"], line["note"]) == ("'=HYPERLINK(1)", "'@SUM(A1)")


def test_the_file_is_read_in_chunks_and_nothing_is_left_out(admin, monkeypatch):
    from ocpp_billing.portal import audit_log

    monkeypatch.setattr(audit_log, "CHUNK_ROWS", 7)
    for n in range(30):
        record("sync.requested", actor="robot", target=f"run {n}")
    lines = list(
        csv.DictReader(io.StringIO(b"".join(admin.get("/settings/audit.csv").streaming_content).decode()))
    )
    assert [line["target"] for line in lines] == [f"run {n}" for n in reversed(range(30))]


def test_pages_go_on_where_the_last_one_ended_whatever_is_added(admin):
    for n in range(60):
        record("sync.requested", actor="robot", target=f"run {n}")
    first = admin.get("/settings/audit?who=robot")
    (following,) = re.findall(r'href="(\?[^"]+)" rel="next"', text(first))
    record("sync.requested", actor="robot", target="run 60")
    second = admin.get(f"/settings/audit{following}")
    shown = [row[1] for row in rows(first) + rows(second)]
    assert shown == [f"run {n}" for n in reversed(range(60))]
    assert "who=robot" in following


def test_hostile_words_are_only_words(admin):
    record("mapping.note", actor="<script>alert(1)</script>", target="x", note="<b>", after={"<i>": "<u>"})
    page = admin.get("/settings/audit").content.decode()
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert "<u>" not in page


def test_nothing_found_and_nothing_done_are_told_apart(admin):
    assert "Nothing was done yet" in text(admin.get("/settings/audit"))
    assert "Nothing matches" in text(admin.get("/settings/audit?who=nobody"))


def test_what_stayed_the_same_is_left_out():
    found = changes({"a": 1, "b": [1], "c": "x"}, {"a": 1, "b": [2], "d_e": None, "f": None, "g": True})
    assert [(one.name, one.before, one.after) for one in found] == [
        ("b", "[1]", "[2]"),
        ("c", "x", None),
        ("g", None, "yes"),
    ]


def test_what_was_taken_away_is_said(settings):
    settings.TIME_ZONE = "Europe/Berlin"
    (change,) = changes({"valid_to": None}, {"valid_to": "2026-12-01T00:00:00+00:00"})
    assert (change.name, change.before, change.after) == ("valid to", "none", "1 Dec 2026, 01:00")


@cache
def recordings():
    """Where anything in the package writes down an act, from its source: (file, call)."""
    return [
        (path, node)
        for path in Path(ocpp_billing.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in {"record", "_record_own"}
    ]


def test_every_act_that_is_recorded_has_words():
    """A new act: say in portal/audit_words.py what it is called."""
    known = set(ACTIONS)
    for path, call in recordings():
        if call.args and isinstance(call.args[0], ast.Constant):
            assert call.args[0].value in known, f"{path}: {call.args[0].value}"
    assert {code.partition(".")[0] + "." for code in ACTIONS} == set(SUBJECTS)


def test_an_act_without_words_is_shown_by_its_code(admin):
    record("future.act", user=User.objects.get(), target="x")
    assert rows(admin.get("/settings/audit")) == [("future.act", "x")]


def test_every_fact_that_is_recorded_has_a_name_for_people():
    found = {
        key.value
        for _, call in recordings()
        for word in call.keywords
        if word.arg in {"before", "after"} and isinstance(word.value, ast.Dict)
        for key in word.value.keys
        if isinstance(key, ast.Constant)
    }
    assert {"reading_stop_wh", "credited_wh", "live_from"} <= found
    assert found <= FACTS.keys()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("reading_stop_wh", 12_345, ("reading at the end", "12.345 kWh")),
        ("state", "held", ("state", "Held")),
        ("reason", "late_period", ("reason", "Period already closed")),
        ("reason", "we look into it", ("reason", "we look into it")),
        ("billed", [["alice", "sub-alice", 8_000]], ("billed to", "alice (sub-alice) 8.000 kWh")),
        ("refund_by_hand", ["sub-alice", "sub-bob"], ("to credit by hand", "sub-alice, sub-bob")),
        ("customer_id", "acme", ("customer", "acme")),
    ],
)
def test_facts_are_said_in_peoples_words_and_units(name, value, says):
    (change,) = changes(None, {name: value})
    assert (change.name, change.after) == says
