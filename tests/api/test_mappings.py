"""Mappings over the API: history is cut, never rewritten, and each change asks the waiting sessions again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ocpp_billing.accounts.models import AuditEntry, Role
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.mappings.models import TagMapping
from tests.portal import ledger

pytestmark = pytest.mark.django_db


@pytest.fixture
def call(as_token):
    return as_token(Role.OPERATOR)


@pytest.fixture
def mapping(now):
    """TAG-1 belongs to ``customer``, for thirty days until further notice."""
    return ledger.add_mapping(now, tag="TAG-1")


def chain(tag="TAG-1"):
    """The history of a tag: (customer, active, from, to)."""
    rows = TagMapping.objects.filter(id_tag__text=tag).order_by("valid_from")
    return [(row.customer_external_id, row.active, row.valid_from, row.valid_to) for row in rows]


def iso(instant):
    return instant.isoformat()


def decided():
    """Nothing waits for a decision."""
    ChargingSession.objects.update(needs_decision=False)


def asked():
    return set(ChargingSession.objects.filter(needs_decision=True).values_list("id_tag_text", flat=True))


def body(now, **given):
    return {"id_tag": "TAG-1", "customer_id": "customer", "valid_from": iso(now - timedelta(days=1)), **given}


# -- create ------------------------------------------------------------------------------------------


def test_a_mapping_is_created_and_the_sessions_that_wait_for_it_are_asked_again(call, now):
    ledger.add_session(now, tag="TAG-1", reason="unmapped_tag")
    ledger.add_session(now, tag="TAG-2", reason="unmapped_tag")
    decided()

    status, made = call("POST", "/mappings", body(now, note="fleet"))

    assert status == 201
    assert (made["id_tag"], made["customer_id"], made["subscription_id"]) == ("TAG-1", "customer", None)
    assert (made["active"], made["note"]) == (True, "fleet")
    assert made["verified"] is False  # Lago is away
    assert asked() == {"TAG-1"}
    entry = AuditEntry.objects.get(action="mapping.create")
    assert (entry.actor, entry.address) == ("operator@example.org (token tests)", "127.0.0.1")
    assert call("GET", f"/mappings/{made['id']}")[1] == made


def test_who_pays_since_when_is_never_guessed(call, now):
    data = body(now)
    del data["valid_from"]

    assert call("POST", "/mappings", data)[0] == 422


def test_two_mappings_of_a_tag_at_one_time_are_a_conflict_whatever_its_case(call, now, mapping):
    status, answer = call("POST", "/mappings", body(now, id_tag="tag-1"))

    assert (status, answer["error"]["code"]) == (409, "conflict")
    assert "already has a mapping" in answer["error"]["message"]


def test_a_mapping_that_ends_before_it_begins_is_not_made(call, now):
    assert call("POST", "/mappings", body(now, valid_to=iso(now - timedelta(days=2))))[0] == 422


# -- end ---------------------------------------------------------------------------------------------


def test_an_ended_mapping_keeps_its_past(call, now, mapping):
    ledger.add_session(now, tag="TAG-1", state="queued")
    decided()

    status, ended = call("POST", f"/mappings/{mapping.pk}/end", {"at": iso(now)})

    assert status == 200
    assert ended["valid_to"] is not None
    assert chain() == [("customer", True, mapping.valid_from, now)]
    assert asked() == {"TAG-1"}


def test_a_mapping_does_not_end_before_it_begins_nor_later_than_it_does(call, now, mapping):
    assert call("POST", f"/mappings/{mapping.pk}/end", {"at": iso(mapping.valid_from)})[0] == 422
    call("POST", f"/mappings/{mapping.pk}/end", {"at": iso(now)})
    assert call("POST", f"/mappings/{mapping.pk}/end", {"at": iso(now + timedelta(days=1))})[0] == 409


# -- switch ------------------------------------------------------------------------------------------


def test_switching_off_cuts_the_interval_and_holds_what_comes(call, now, mapping):
    status, off = call("POST", f"/mappings/{mapping.pk}/switch", {"active": False, "at": iso(now)})

    assert (status, off["active"]) == (200, False)
    assert chain() == [
        ("customer", True, mapping.valid_from, now),
        ("customer", False, now, None),
    ]


def test_switching_on_asks_about_the_gap(call, now):
    off = ledger.add_mapping(now, tag="TAG-1", active=False, since=timedelta(days=2))

    status, answer = call("POST", f"/mappings/{off.pk}/switch", {"active": True})

    assert status == 422
    assert "bill_gap" in answer["error"]["message"]


def test_a_gap_that_is_not_billed_stays_off(call, now):
    off = ledger.add_mapping(now, tag="TAG-1", active=False, since=timedelta(days=2))

    call("POST", f"/mappings/{off.pk}/switch", {"active": True, "at": iso(now), "bill_gap": False})

    assert chain() == [("customer", False, off.valid_from, now), ("customer", True, now, None)]


def test_a_gap_that_is_billed_counts_as_on_from_its_beginning(call, now):
    off = ledger.add_mapping(now, tag="TAG-1", active=False, since=timedelta(days=2))

    call("POST", f"/mappings/{off.pk}/switch", {"active": True, "at": iso(now), "bill_gap": True})

    assert chain() == [("customer", True, off.valid_from, None)]
    assert AuditEntry.objects.get(action="mapping.switch_on").after["gap_billed"] is True


def test_what_is_on_is_not_switched_on(call, mapping):
    data = {"active": True, "bill_gap": True}

    assert call("POST", f"/mappings/{mapping.pk}/switch", data)[0] == 409


# -- change ------------------------------------------------------------------------------------------


def test_another_customer_pays_from_a_date_on(call, now, mapping):
    data = {"customer_id": "other", "subscription_id": "sub", "at": iso(now)}

    status, changed = call("PATCH", f"/mappings/{mapping.pk}", data)

    assert (status, changed["customer_id"], changed["subscription_id"]) == (200, "other", "sub")
    assert chain() == [("customer", True, mapping.valid_from, now), ("other", True, now, None)]


def test_a_slip_is_put_right_from_the_beginning_while_lago_knows_nothing_of_it(call, now, mapping):
    at = iso(mapping.valid_from)

    assert call("PATCH", f"/mappings/{mapping.pk}", {"customer_id": "other", "at": at})[0] == 200

    assert chain() == [("other", True, mapping.valid_from, None)]


def test_what_lago_was_sent_is_not_rewritten(call, now, mapping):
    session = ledger.add_session(now, tag="TAG-1", state="accepted")
    session.decisions.update(mapping=mapping)
    data = {"customer_id": "other", "at": iso(mapping.valid_from)}

    status, answer = call("PATCH", f"/mappings/{mapping.pk}", data)

    assert (status, answer["error"]["code"]) == (409, "conflict")
    assert chain() == [("customer", True, mapping.valid_from, None)]


def test_a_change_says_who_and_from_when(call, mapping):
    assert call("PATCH", f"/mappings/{mapping.pk}", {"customer_id": "other"})[0] == 422
    assert call("PATCH", f"/mappings/{mapping.pk}", {"subscription_id": "sub"})[0] == 422


def test_a_note_changes_nothing_else(call, now, mapping):
    ledger.add_session(now, tag="TAG-1", state="queued")
    decided()

    assert call("PATCH", f"/mappings/{mapping.pk}", {"note": "new"})[1]["note"] == "new"
    assert asked() == set()


# -- delete ------------------------------------------------------------------------------------------


def test_a_mapping_without_events_is_deleted_and_its_sessions_are_asked_again(call, now, mapping):
    session = ledger.add_session(now, tag="TAG-1", reason="no_subscription")
    session.decisions.create(revision=1, outcome="hold", energy_wh=1, decided_at=now, mapping=mapping)
    decided()

    assert call("DELETE", f"/mappings/{mapping.pk}") == (204, None)

    assert chain() == []
    assert asked() == {"TAG-1"}
    assert session.decisions.get().mapping is None
    assert AuditEntry.objects.get(action="mapping.delete").before["customer_id"] == "customer"


@pytest.mark.parametrize("state", ["queued", "accepted"])
def test_a_mapping_with_events_stays_to_explain_them(call, now, mapping, state):
    session = ledger.add_session(now, tag="TAG-1", state=state)
    session.decisions.update(mapping=mapping)

    status, answer = call("DELETE", f"/mappings/{mapping.pk}")

    assert (status, answer["error"]["code"]) == (409, "conflict")
    assert "End it" in answer["error"]["message"]
    assert len(chain()) == 1


# -- preview -----------------------------------------------------------------------------------------


def test_the_preview_says_what_a_mapping_would_release_and_changes_nothing(call, now):
    ledger.add_session(now, tag="TAG-1", energy_wh=3_000, reason="unmapped_tag")
    ledger.add_session(now, tag="TAG-1", energy_wh=4_000, reason="unmapped_tag")
    ledger.add_session(now, tag="TAG-1", energy_wh=900_000, reason="implausible")
    ledger.add_session(
        now, tag="TAG-1", energy_wh=5_000, reason="unmapped_tag", stopped_ago=timedelta(days=5)
    )
    ledger.add_session(now, tag="TAG-2", energy_wh=6_000, reason="unmapped_tag")
    ledger.add_session(now, tag="TAG-1", energy_wh=7_000, state="accepted")
    decided()

    status, answer = call("POST", "/mappings/preview", body(now))

    assert status == 200
    assert answer == {
        "released": {"sessions": 2, "energy_wh": 7_000},
        "groups": [
            {"state": "held", "reason": "implausible", "sessions": 1, "energy_wh": 900_000},
            {"state": "held", "reason": "unmapped_tag", "sessions": 2, "energy_wh": 7_000},
        ],
        "overlaps": False,
    }
    assert asked() == set()
    assert chain() == []


def test_the_preview_counts_tags_below_that_inherit(call, now):
    parent, child, grandchild = (ledger.add_tag(text) for text in ("TAG-1", "CHILD", "GRANDCHILD"))
    child.parents.create(parent=parent, seen_from=now - timedelta(days=9))
    grandchild.parents.create(parent=child, seen_from=now - timedelta(days=9))
    ledger.add_session(now, tag="GRANDCHILD", energy_wh=3_000, reason="unmapped_tag")
    mapped = ledger.add_tag("MAPPED")
    mapped.parents.create(parent=parent, seen_from=now - timedelta(days=9))
    ledger.add_mapping(now, tag="MAPPED", active=False)
    ledger.add_session(now, tag="MAPPED", energy_wh=5_000, reason="mapping_inactive")

    _, answer = call("POST", "/mappings/preview", body(now))

    assert answer["released"] == {"sessions": 1, "energy_wh": 3_000}


def test_the_preview_says_that_another_mapping_is_in_the_way(call, now, mapping):
    assert call("POST", "/mappings/preview", body(now))[1]["overlaps"] is True


# -- lists -------------------------------------------------------------------------------------------


def test_mappings_are_found_by_tag_customer_and_whether_they_are_over(call, now):
    over = ledger.add_mapping(now, tag="TAG-1", until=timedelta(days=10))
    current = ledger.add_mapping(now, tag="TAG-1", since=timedelta(days=10))
    TagMapping.objects.filter(pk=current.pk).update(customer_external_id="other")

    def found(query):
        return [item["id"] for item in call("GET", f"/mappings?{query}")[1]["items"]]

    assert found("tag=tag-1") == [current.pk, over.pk]
    assert found("current=true") == [current.pk]
    assert found("current=false") == [over.pk]
    assert found("customer=other") == [current.pk]


def test_tags_say_who_pays_now_and_how_much_waits(call, now, mapping):
    ledger.add_session(now, tag="TAG-2", energy_wh=6_000, reason="unmapped_tag")
    ledger.add_session(now, tag="TAG-3", energy_wh=9_000, reason="unmapped_tag")

    tags = {tag["id_tag"]: tag for tag in call("GET", "/tags")[1]["items"]}

    assert (tags["TAG-1"]["mapped"], tags["TAG-1"]["customer_id"]) == ("active", "customer")
    assert (tags["TAG-2"]["mapped"], tags["TAG-2"]["waiting"]) == (
        "none",
        {"sessions": 1, "energy_wh": 6_000},
    )
    assert [tag["id_tag"] for tag in call("GET", "/tags?unmapped=true")[1]["items"]] == ["TAG-3", "TAG-2"]
    assert [tag["id_tag"] for tag in call("GET", "/tags?search=g-1")[1]["items"]] == ["TAG-1"]
