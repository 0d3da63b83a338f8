"""Lago does whatever it can, in any order, and our process dies anywhere: nothing is lost, nothing doubled."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from ocpp_billing.billing.models import UsageEvent
from tests.crash.enumeration import come_to_rest
from tests.crash.lago_side import LagoSide, prepare
from tests.crash.mortal import Mortal
from tests.crash.saved import saved
from tests.crash.stories import BEFORE_POST, late_request_arrives

STORES = ("postgres", "postgres-1.32", "postgres-1.30", "clickhouse-plain")
EXAMPLES, STEPS = 5, 20
EXAMPLES_LONG, STEPS_LONG = 1_000, 40

# What was found is not made smaller: that takes minutes, and the steps are printed as they are.
PHASES = (Phase.explicit, Phase.generate)


def play(world, number, examples, steps):
    """Let hypothesis play; the seed is printed, and repeats it."""
    sys.stdout.write(f"seed {number}\n")
    prepare(world)
    with saved(world) as start:
        run_state_machine_as_test(
            seed(number)(lambda: LagoSide(start)),
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                print_blob=True,
                phases=PHASES,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.parametrize("store", STORES)
def test_whatever_lago_does_every_watt_hour_is_billed_once_or_held(world, store, record_property):
    record_property("seed", 1)
    play(world, 1, EXAMPLES, STEPS)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("store", STORES)
def test_whatever_lago_does_for_long(world, store, record_property):
    number = random.SystemRandom().randrange(2**32)
    record_property("seed", number)
    play(world, number, EXAMPLES_LONG, STEPS_LONG)


# -- what it found ------------------------------------------------------------------------------------------


def sessions_in_advance(world):
    """Three sessions that are charged in advance, on a Lago that knows their customer."""
    prepare(world)
    for number in range(3):
        world.session("TAG-CAROL", f"CP-{number}", energy_wh=1_000 + number)


@pytest.mark.parametrize("store", STORES)
def test_a_batch_that_is_stored_in_part_loses_nothing_that_is_charged_in_advance(world):
    sessions_in_advance(world)
    Mortal(meanwhile={BEFORE_POST: lambda: late_request_arrives(world)}).live(world.sync)
    come_to_rest(world)
    assert world.lago_wh() == 3_003


def test_what_lago_stored_and_never_charged_in_advance_is_held_after_a_day(world):
    sessions_in_advance(world)
    world.lago.lose_jobs(1)
    world.sync()
    uncharged = UsageEvent.objects.get(state="accepted")
    world.clock.advance(days=1)
    world.sync()
    assert world.state_of(uncharged.session.steve_id) == ("held", "conflict_in_lago")
    come_to_rest(world)
    assert world.lago_wh() == 3_003 - uncharged.energy_wh
