"""What Lago took and does not count: told after a day, to everybody who should know, until Lago counts it."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from ocpp_billing.alerts.conditions import conditions
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.billing.uncounted import read_uncounted
from ocpp_billing.cli import main
from ocpp_billing.metrics import read_metrics
from ocpp_billing.portal.inbox import count_waiting


@pytest.fixture
def live(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    return world


def alert(world):
    found = [each for each in conditions(world.config(), world.clock.now()) if each.code == "not_confirmed"]
    return found[0] if found else None


def figures(world):
    lines = read_metrics(world.config()).decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def lost_job(world):
    """Lago loses the job after storing the next event, so its count stays as it was until another comes."""
    world.session("TAG-ALICE", stop=timedelta(minutes=90))
    world.sync()
    world.lago.lose_jobs(1)
    return lambda: world.session("TAG-ALICE", start=timedelta(minutes=40), stop=timedelta(minutes=20))


def no_charge(world):
    """The plan does not charge the metric any more."""
    plan = world.lago.books.catalogue.plans["ev_payg"]
    charges, plan.charges = plan.charges, type(plan.charges)()

    def put_back():
        plan.charges = charges

    return put_back


def never_counted(world, fault):
    """A session whose usage event Lago took an hour ago and does not count; and what mends that."""
    if fault is lost_job:
        put_back = fault(world)
    session = world.session("TAG-ALICE")
    world.sync(confirm_settle_seconds=3600)
    if fault is no_charge:
        put_back = fault(world)
    return session, put_back


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            lost_job,
            (
                "Lago counts 10.000 kWh of ev_charging_kwh for sub-alice from 2026-02-25 to 2026-03-24, and "
                "was sent 20.000 kWh by us and nothing by others: 10.000 kWh are missing."
            ),
        ),
        (
            no_charge,
            (
                "Lago shows no usage of ev_charging_kwh for sub-alice in a period with 2026-03-17 11:00 UTC in "
                "it: The subscription's plan has no charge on this billable metric."
            ),
        ),
    ],
    ids=["count", "charge"],
)
def test_it_is_told_after_a_day_and_over_once_lago_counts_it(live, doctor, fault, says):
    session, put_back = never_counted(live, fault)
    live.clock.advance(hours=23)
    live.sync()
    assert (live.state_of(session), alert(live)) == (("accepted", None), None)
    live.clock.advance(hours=2)
    live.sync()
    found = alert(live)
    told = "Lago accepted 1 usage event over a day ago, not confirmed yet: 10.000 kWh are at stake."
    assert found.says == f"{told} {says}"
    assert ("ocpp-billing reconcile" in found.do, found.size) == (True, 1)
    assert doctor()["not_confirmed"]["says"] == found.says
    (line,) = read_uncounted("main").subscriptions
    assert (line.customer, line.subscription, line.at_stake_wh) == ("alice", "sub-alice", 10_000)
    assert count_waiting("main") == 1
    told = figures(live)
    assert float(told["ocpp_billing_accepted_oldest_age_seconds"]) > 86_400
    assert float(told["ocpp_billing_uncounted_energy_wh"]) == 10_000

    put_back()
    live.sync()
    assert (live.state_of(session), alert(live)) == (("confirmed", None), None)
    assert "not_confirmed" not in doctor()
    assert count_waiting("main") == 0
    assert "ocpp_billing_accepted_oldest_age_seconds" not in figures(live)


def test_that_it_goes_on_is_written_once_and_what_changes_is_told(live):
    live.session("TAG-ALICE")
    live.sync(confirm_settle_seconds=3600)
    no_charge(live)
    live.clock.advance(days=1, hours=1)
    live.sync()
    first = UsageEvent.objects.get()
    live.clock.advance(hours=1)
    live.sync()
    assert UsageEvent.objects.get().uncounted_since == first.uncounted_since
    live.lago.books.catalogue.metrics.clear()
    live.clock.advance(hours=1)
    live.sync()
    assert UsageEvent.objects.get().uncounted_says == first.uncounted_says
    live.clock.advance(days=1)
    live.sync()
    again = UsageEvent.objects.get()
    assert again.uncounted_says == "Lago has no metric ev_charging_kwh any more"
    assert again.uncounted_since == first.uncounted_since


def test_an_outage_of_lago_says_nothing_about_what_it_counts(live):
    live.session("TAG-ALICE")
    live.sync(confirm_settle_seconds=3600)
    live.lago.revoke_api_key()
    live.clock.advance(days=3)
    live.sync()
    assert alert(live) is None
    live.clock.advance(days=3)
    assert UsageEvent.objects.get().uncounted_since is None


def test_while_delivery_is_paused_it_is_told_as_well(live):
    live.session("TAG-ALICE")
    live.sync(confirm_settle_seconds=3600)
    no_charge(live)
    live.pause()
    live.clock.advance(days=1, hours=1)
    live.sync()
    assert alert(live) is not None


def test_what_was_told_says_nothing_about_a_later_acceptance(live):
    live.session("TAG-ALICE")
    live.sync(confirm_settle_seconds=3600)
    no_charge(live)
    live.clock.advance(days=1, hours=1)
    live.sync()
    UsageEvent.objects.update(accepted_at=live.clock.now() + timedelta(minutes=1))
    assert alert(live) is None


def in_conflict(world):
    """A session whose event Lago has, and counts, and which is held here as one in conflict."""
    session = world.session("TAG-ALICE")
    world.sync()
    UsageEvent.objects.update(state="held", reason="conflict_in_lago")
    return session


def two_more(world):
    """Two sessions whose events Lago took an hour ago."""
    later = {"start": timedelta(minutes=40), "stop": timedelta(minutes=20)}
    sessions = [world.session("TAG-ALICE", **later), world.session("TAG-ALICE", "CP-2", **later)]
    world.sync(confirm_settle_seconds=3600)
    return sessions


def test_an_event_of_ours_that_is_held_explains_what_lago_counts(live):
    in_conflict(live)
    sessions = two_more(live)
    live.clock.advance(hours=2)
    live.sync()
    assert [live.state_of(each) for each in sessions] == [("confirmed", None)] * 2


def test_where_lago_counts_too_much_nobody_is_told_to_invoice(live):
    in_conflict(live)
    two_more(live)
    held = UsageEvent.objects.get(state="held").transaction_id
    UsageEvent.objects.filter(state="accepted").update(
        energy_wh=9_000
    )  # as if Lago counted 1 kWh more of each
    live.clock.advance(days=1, hours=1)
    live.sync()
    found = alert(live)
    assert "2 usage events over a day ago, not confirmed yet: 12.000 kWh are at stake" in found.says
    assert "Lago counts 30.000 kWh" in found.says
    assert "12.000 kWh are too many; besides, it lists 10.000 kWh of ours" in found.says
    assert f"{held} (10.000 kWh, held as conflict_in_lago)" in found.says
    assert "Invoice nothing by hand" in found.do
    assert "invoice there by hand" not in found.do
    assert read_uncounted("main").surplus_wh == 12_000


def test_what_is_missing_is_told_and_not_the_energy_of_all_events_of_the_period(live):
    sessions = two_more(live)
    UsageEvent.objects.filter(session__steve_id=sessions[0]).update(
        energy_wh=10_300
    )  # as if Lago counted less
    live.clock.advance(days=1, hours=1)
    live.sync()
    assert [live.state_of(each) for each in sessions] == [("accepted", None)] * 2
    found = read_uncounted("main")
    assert (found.events, found.missing_wh, found.at_stake_wh) == (2, 300, 300)
    assert "and only that" in alert(live).do
    assert "write a credit note" not in alert(live).do


@pytest.fixture
def doctor(world, monkeypatch, capsys):
    """What is not as it should be, by code."""

    def look():
        for name, value in world.environment().items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        main(["doctor", "--json"])
        findings = json.loads(capsys.readouterr().out)["findings"]
        return {each["code"]: each for each in findings if each["level"] != "ok"}

    return look
