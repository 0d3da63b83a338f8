"""Our own clock is wrong for a while, those of StEvE and Lago are not; then it is put right."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection

from ocpp_billing import clock
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.models import ChargingSession, IdTag
from ocpp_billing.simulators.server import Fault

YEAR = timedelta(days=366)


@contextmanager
def our_clock_ahead(world, by):
    clock.install_clock(lambda: world.clock.now() + by, world.clock.sleep)
    try:
        yield
    finally:
        clock.install_clock(world.clock.now, world.clock.sleep)


@pytest.mark.parametrize("by", [timedelta(days=1), YEAR], ids=["a day", "a year"])
def test_what_was_put_off_while_it_was_ahead_goes_out_once_it_is_right(world, by):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.session("TAG-ALICE", energy_wh=3_000)
    with our_clock_ahead(world, by):
        world.lago.add_fault(Fault("status", path="/events/batch", status=503, times=-1))
        world.sync()
        world.lago.clear_faults()
    for _ in range(2):
        world.sync()
    assert world.state_of(1) == ("confirmed", None)
    assert world.lago_wh() == 3_000
    world.assert_conserved()


def test_what_was_accepted_while_it_was_ahead_is_confirmed_once_it_is_right(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.session("TAG-ALICE", energy_wh=3_000)
    world.sync(confirm_settle_seconds=3_600)
    assert UsageEvent.objects.filter(state="accepted").update(accepted_at=world.clock.now() + YEAR)
    for _ in range(2):
        world.sync()
    assert world.state_of(1) == ("confirmed", None)


def test_what_lago_said_while_it_was_ahead_is_not_believed_for_a_year(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.session("TAG-ALICE", "CP-1", energy_wh=3_000)
    with our_clock_ahead(world, YEAR):
        world.sync()
    world.lago.terminate("sub-alice")
    world.clock.advance(hours=3)
    world.session("TAG-ALICE", "CP-2", energy_wh=1_000)
    world.sync()
    assert ChargingSession.objects.get(steve_id=2).reason == "no_subscription"
    with connection.cursor() as cursor:
        cursor.execute("SELECT max(read_at) FROM lago_customer_read")
        ((read_at,),) = cursor.fetchall()
    assert read_at <= world.clock.now()


def test_a_tag_that_gets_another_parent_afterwards_is_read_once_it_is_right(world):
    world.payer("TAG-FLEET", "fleet")
    world.steve.add_tag("TAG-FLEET")
    world.steve.add_tag("TAG-VAN")
    with our_clock_ahead(world, YEAR):
        world.sync()
    world.steve.set_parent("TAG-VAN", "TAG-FLEET")
    for _ in range(4):
        world.clock.advance(hours=1)
        world.sync()
    assert IdTag.objects.filter(text="TAG-VAN", parents__parent__text="TAG-FLEET").exists()
