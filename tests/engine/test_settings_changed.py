"""A setting is changed, and the worker restarted, in the middle of a delivery: nothing twice, nothing lost."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.mappings.models import TagMapping

HOUR = timedelta(hours=1)
every_store = pytest.mark.parametrize(
    "store", ["postgres", pytest.param("clickhouse", marks=pytest.mark.long)]
)
in_the_middle = pytest.mark.parametrize("phase", ["before", "after"])


@pytest.fixture
def live(two_metrics):
    """The environment says from when billing is live."""
    two_metrics.settings["BILLING_START"] = two_metrics.begins_at.isoformat()
    return two_metrics


def go_on(world, runs=3):
    """So many runs, far enough apart for what is settled by waiting."""
    for _ in range(runs):
        world.clock.advance(HOUR)
        run = world.sync()
    return run


@in_the_middle
@every_store
def test_the_metric_code(live, phase):
    """What Lago may have had stays as it was sent; what it never got is held, until the old code is back."""
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.crash_at("http lago POST /events/batch", phase)
    live.settings["LAGO_METRIC_CODE"] = "energy_kwh"
    new = live.session("TAG-ALICE", "CP-2", energy_wh=70)
    run = go_on(live)
    assert (run.status, run.errors) == ("completed", [])
    assert live.state_of(new) == ("confirmed", None)
    if phase == "before":
        assert live.lago_wh_by_session() == {new: 70}
        assert live.state_of(session) == ("held", "metric_not_charged")
        answer = UsageEvent.objects.get(metric_code="ev_charging_kwh").answer
        assert "put ev_charging_kwh back until it is confirmed" in answer["says"]
        del live.settings["LAGO_METRIC_CODE"]
        go_on(live)
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh_by_session() == {session: 1_000, new: 70}
    live.assert_conserved()


@in_the_middle
@every_store
def test_the_late_policy_after_the_period_was_closed(live, phase):
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.crash_at("http lago POST /events/batch", phase)
    live.lago.close_period("sub-alice")
    live.settings["LATE_POLICY"] = "current_period"
    go_on(live)
    assert live.lago_wh_by_session() == {session: 1_000}
    assert live.state_of(session) == ("confirmed", None)
    live.assert_conserved()


@in_the_middle
def test_the_beginning_of_billing(live, phase):
    """What Lago may have had stays billed; what was queued and never sent is excluded."""
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.crash_at("http lago POST /events/batch", phase)
    never_sent = live.session("TAG-ALICE", "CP-2", energy_wh=70)
    live.settings["BILLING_START"] = live.clock.now().isoformat()
    go_on(live)
    assert live.lago_wh_by_session() == {session: 1_000}
    assert live.state_of(session) == ("confirmed", None)
    assert live.state_of(never_sent) == ("excluded", "before_go_live")
    live.assert_conserved()


@pytest.mark.parametrize(
    "phase", ["after", *(pytest.param(phase, marks=pytest.mark.long) for phase in ("before", "never"))]
)
def test_the_name_of_the_source_bills_nothing_again(live, phase):
    session = live.session("TAG-ALICE", energy_wh=1_000)
    if phase == "never":
        live.sync()
    else:
        live.crash_at("http lago POST /events/batch", phase)
    before = live.lago_events()
    live.settings["STEVE_SOURCE"] = "renamed"
    live.map("TAG-ALICE", "alice")
    go_on(live)
    assert live.state_of(session) == ("held", "billed_by_another_source")
    assert "is known as one of STEVE_SOURCE main, which " in live.words_about(session)
    assert live.lago_events() == before
    new = live.session("TAG-ALICE", "CP-2", energy_wh=70)  # the old name never saw it
    go_on(live)
    assert live.lago_wh_by_session()[new] == 70

    del live.settings["STEVE_SOURCE"]
    go_on(live)
    assert live.lago_wh_by_session() == {session: 1_000, new: 70}
    assert live.state_of(session) == ("confirmed", None)
    assert live.state_of(new) == ("held", "billed_by_another_source")
    assert "STEVE_SOURCE renamed, which billed 0.070 kWh of it in Lago (confirmed)" in live.words_about(new)
    live.show_as(session, stopValue="3000")  # what the old name knew first goes on as if nothing had been
    go_on(live)
    assert live.lago_wh_by_session() == {session: 2_000, new: 70}
    assert live.balance().unexplained.sessions == 0
    assert ChargingSession.objects.count() == 4
    assert TagMapping.objects.count() == 2
