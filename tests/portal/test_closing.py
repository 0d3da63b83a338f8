"""Closing a stuck session in StEvE through the portal, between a StEvE and a Lago that answer."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ocpp_billing.accounts.models import AuditEntry, Role
from ocpp_billing.simulators.steve import Sample
from tests.portal.test_mappings import hidden, main_of

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


def orders(world):
    """What StEvE was told to do."""
    return [request["path"] for request in world.steve.requests if request["method"] == "PATCH"]


@pytest.fixture
def stuck(world):
    """A session that never stopped: its last meter value says 9 kWh, then the next one began."""
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    steve_id = world.start("TAG-ALICE", "CP-1", 1, 3 * HOUR, 1_000)
    assert world.steve.meter_values("CP-1", 1, [Sample(world.at(2 * HOUR), "10000")], steve_id)
    world.session("TAG-ALICE", "CP-1", 1, 40 * MINUTE, 10 * MINUTE, 10_000, 12_000)
    world.sync()
    assert world.state_of(steve_id) == ("stuck", None)
    return steve_id


@pytest.mark.parametrize("release", ["3.14.1"])
def test_a_stuck_session_is_closed_in_steve_after_a_preview_and_billed(world, operated, stuck):
    client = operated(Role.OPERATOR)
    group = main_of(client.get("/attention/stuck/-"))
    assert "Its last meter value was 10.000 kWh" in group
    assert "≈ 9.000" in group
    path = f"/sessions/{world._session(stuck).get().pk}/close"

    preview = client.get(f"{path}?next=/attention")
    says = main_of(preview)
    assert f"StEvE would end session {stuck} with a meter of 10.000 kWh" in says
    assert "It then delivered 9.000 kWh." in says
    assert "The evidence agrees, so it is billed" in says
    assert "It cannot be undone." in says
    assert orders(world) == []

    done = client.post(path, hidden(preview), follow=True)
    assert done.redirect_chain == [("/attention", 302)]
    assert f"Session {stuck} is closed in StEvE: 9.000 kWh." in main_of(done)
    assert "Stuck" not in main_of(done).partition("Sync now")[2]
    assert len(orders(world)) == 1
    assert AuditEntry.objects.get(action="session.close").actor == "operator@example.org"
    world.sync()
    assert world.state_of(stuck) == ("confirmed", None)
    assert world.lago_wh_by_session()[stuck] == 9_000
    world.assert_conserved()

    again = client.post(path, hidden(preview))
    assert again.status_code == 409
    assert "is not open for this session any more" in main_of(again)


@pytest.mark.parametrize("release", ["3.14.1"])
def test_what_changed_since_the_preview_closes_nothing(world, operated, stuck):
    client = operated(Role.OPERATOR)
    path = f"/sessions/{world._session(stuck).get().pk}/close"
    preview = client.get(path)

    forged = client.post(path, hidden(preview) | {"expected_stop_wh": "9000"})

    assert f"Session {stuck} has changed meanwhile" in main_of(forged)
    assert orders(world) == []
