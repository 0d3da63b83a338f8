"""Rows 8 and 40 of the scenarios, over the API, with the engine between a StEvE and a Lago."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ocpp_billing.charging.models import ChargingSession


def state_of(steve_id):
    session = ChargingSession.objects.get(steve_id=steve_id)
    return session.state, session.reason


@pytest.mark.parametrize("bill_gap", [True, False])
def test_a_mapping_off_for_two_days_bills_the_gap_only_if_the_person_says_so(world, call, bill_gap):
    world.payer("TAG-1", "alice")
    world.go_live()
    now = world.clock.now()
    (mapping,) = call("GET", "/mappings")[1]["items"]
    _, off = call(
        "POST",
        f"/mappings/{mapping['id']}/switch",
        {"active": False, "at": (now - timedelta(days=2)).isoformat()},
    )
    before = world.session(
        "TAG-1", start=timedelta(days=3), stop=timedelta(days=3, hours=-1), energy_wh=1_000
    )
    gap = world.session("TAG-1", start=timedelta(days=1), stop=timedelta(hours=23), energy_wh=2_000)
    world.sync()
    assert state_of(before)[0] == "confirmed"
    assert state_of(gap) == ("held", "mapping_inactive")

    status, _ = call(
        "POST",
        f"/mappings/{off['id']}/switch",
        {"active": True, "bill_gap": bill_gap, "at": world.clock.now().isoformat()},
    )
    assert status == 200
    world.clock.advance(hours=3)
    after = world.session("TAG-1", energy_wh=4_000)
    world.sync()

    assert state_of(after)[0] == "confirmed"
    assert state_of(gap)[0] == ("confirmed" if bill_gap else "held")
    assert world.lago_wh("sub-alice") == (7_000 if bill_gap else 5_000)


def test_a_mapping_made_after_the_session_releases_what_its_preview_said(world, call):
    world.customer("alice")
    world.go_live()
    waits = world.session("TAG-1", energy_wh=5_000)
    world.sync()
    assert state_of(waits) == ("held", "unmapped_tag")
    data = {
        "id_tag": "tag-1",
        "customer_id": "alice",
        "subscription_id": "sub-alice",
        "valid_from": world.begins_at.isoformat(),
    }

    preview = call("POST", "/mappings/preview", data)[1]
    status, made = call("POST", "/mappings", data)
    world.sync()

    assert (status, made["verified"]) == (201, True)
    assert preview["released"] == {"sessions": 1, "energy_wh": 5_000}
    assert state_of(waits)[0] == "confirmed"
    assert world.lago_wh("sub-alice") == 5_000


def test_a_mapping_deleted_before_anything_was_sent_bills_nobody(world, call):
    world.payer("TAG-1", "alice")
    waits = world.session("TAG-1", energy_wh=5_000)
    world.customer("nobody")
    (mapping,) = call("GET", "/mappings")[1]["items"]

    assert call("DELETE", f"/mappings/{mapping['id']}")[0] == 204
    world.go_live()
    world.sync()

    assert state_of(waits) == ("held", "unmapped_tag")
    assert world.lago_wh() == 0


def test_billed_sessions_stay_where_they_were_sent_when_the_mapping_changes(world, call):
    world.payer("TAG-1", "alice")
    world.customer("bob")
    world.go_live()
    world.session("TAG-1", energy_wh=5_000)
    world.sync()
    (mapping,) = call("GET", "/mappings")[1]["items"]

    status, _ = call(
        "PATCH",
        f"/mappings/{mapping['id']}",
        {"customer_id": "bob", "at": (world.begins_at + timedelta(days=1)).isoformat()},
    )
    world.clock.advance(hours=3)
    world.session("TAG-1", energy_wh=2_000)
    world.sync()

    assert status == 200
    assert world.lago_wh("sub-alice") == 5_000
    assert world.lago_wh("sub-bob") == 2_000


def test_a_customer_that_lago_does_not_have_is_refused(world, call):
    world.customer("alice")
    data = {"id_tag": "TAG-1", "valid_from": world.begins_at.isoformat()}

    unknown = call("POST", "/mappings", {**data, "customer_id": "mallory"})
    not_theirs = call("POST", "/mappings", {**data, "customer_id": "alice", "subscription_id": "sub-bob"})

    assert (unknown[0], not_theirs[0]) == (422, 422)
    assert "Lago has no customer" in unknown[1]["error"]["message"]
    assert "no subscription" in not_theirs[1]["error"]["message"]

    world.go_live()
    world.session("TAG-1", energy_wh=5_000)
    world.sync()
    path = f"/held/{ChargingSession.objects.get().pk}/assign"
    assigned = call("POST", path, {"customer_id": "mallory"})
    assert (assigned[0], assigned[1]["error"]["message"]) == (422, unknown[1]["error"]["message"])
    assert call("POST", path, {"customer_id": "alice"})[0] == 200
