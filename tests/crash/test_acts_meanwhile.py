"""A person acts in the middle of a run, wherever that is: what was ordered holds from that moment on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from ocpp_billing.billing import review
from ocpp_billing.billing.move import MoveError, carry_out_move, preview_move
from ocpp_billing.billing.review import ReviewError
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.effects import install_hook
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.lago.wire import MAX_BATCH_EVENTS
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.mappings.store import MappingError, change_mapping
from ocpp_billing.sync.clients import open_clients
from ocpp_billing.sync.policy import policy_of
from tests.crash.mortal import Boundary
from tests.crash.saved import saved

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocpp_billing.effects import Phase
    from tests.world import World

HOUR = timedelta(hours=1)
POST = "http lago POST /events/batch"


@dataclass
class Meanwhile:
    """Lets a run pass its boundaries, and a person act at one of them.

    Attributes:
        act: what the person does.
        at: after so many boundaries; None = never.
        passed: the boundaries of the run.
    """

    act: Callable[[], object]
    at: int | None = None
    passed: list[Boundary] = field(default_factory=list)
    _acts: bool = False

    def __call__(self, name: str, phase: Phase) -> None:
        """An effect of the run, or of the act, begins or has ended."""
        if self._acts:
            return
        if len(self.passed) == self.at:
            self._acts = True
            self.act()
            self._acts = False
        self.passed.append(Boundary(name, phase))

    def sync(self, world: World) -> list[Boundary]:
        """One run; returns its boundaries."""
        install_hook(self)
        try:
            world.sync()
        finally:
            install_hook(None)
        return self.passed


def moments(world: World) -> list[tuple[int, Boundary]]:
    """When a person can act during the next run: just before each effect of it; the world stays as it was."""
    with saved(world) as start:
        passed = Meanwhile(lambda: None).sync(world)
        start.restore()
    return [(number, boundary) for number, boundary in enumerate(passed) if boundary.phase == "before"]


def between(chosen: list[tuple[int, Boundary]], first: str, last: str) -> list[tuple[int, Boundary]]:
    """The moments from the first effect of one name to the first of another one."""
    effects = [boundary.effect for _, boundary in chosen]
    return chosen[effects.index(first) : effects.index(last) + 1]


@pytest.mark.parametrize("decided", [False, True], ids=["new", "decided"])
def test_whoever_goes_live_in_the_middle_of_a_run_bills_nothing_of_before(world, decided):
    world.payer("TAG-ALICE", "alice")
    live_from = world.clock.now() - 3 * HOUR
    before = world.session("TAG-ALICE", "CP-1", start=6 * HOUR, stop=4 * HOUR, energy_wh=5_000)
    after = world.session("TAG-ALICE", "CP-2", energy_wh=7_000)
    if decided:
        world.sync()
    chosen = between(moments(world), "db commit ask again", "db commit organization")
    with saved(world) as start:
        for moment, boundary in chosen:
            start.restore()
            Meanwhile(lambda: world.go_live(live_from), moment).sync(world)
            world.sync()
            where = f"{boundary} ({moment})"
            assert world.state_of(before) == ("excluded", "before_go_live"), where
            assert world.state_of(after) == ("confirmed", None), where
            assert world.lago_wh() == 7_000, where
            world.assert_conserved()


def test_what_is_excluded_in_the_middle_of_a_run_is_not_sent_any_more(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.pause()
    excluded = world.session("TAG-ALICE", "CP-1", energy_wh=5_000)
    sent = world.session("TAG-ALICE", "CP-2", energy_wh=7_000)
    world.sync()
    world.resume()
    session_id = ChargingSession.objects.get(steve_id=excluded).pk
    chosen = between(moments(world), "db commit ask again", "db commit claim")
    with saved(world) as start:
        for moment, boundary in chosen:
            start.restore()
            Meanwhile(lambda: review.exclude(session_id, note="a test drive", by="anna"), moment).sync(world)
            world.sync()
            where = f"{boundary} ({moment})"
            assert world.state_of(excluded) == ("excluded", "by_operator"), where
            assert world.state_of(sent) == ("confirmed", None), where
            assert world.lago_wh() == 7_000, where
            world.assert_conserved()


def test_a_pause_ends_a_delivery_after_the_batch_that_is_under_way(world):
    world.payer("TAG-ALICE", "alice")
    for number in range(MAX_BATCH_EVENTS + 1):
        world.session("TAG-ALICE", f"CP-{number}", energy_wh=1_000)
    world.go_live()
    ((first_post, _), *_) = [
        (number, boundary) for number, boundary in moments(world) if boundary.effect == POST
    ]
    Meanwhile(world.pause, first_post).sync(world)
    assert len(world.posts()) == 1
    assert world.balance().states["queued"].sessions == 1
    world.sync()
    assert len(world.posts()) == 1
    world.resume()
    world.sync()
    assert world.lago_wh() == (MAX_BATCH_EVENTS + 1) * 1_000
    world.assert_conserved()


def _to_bob(world: World) -> None:
    """Alice's mapping was wrong: her sessions are Bob's."""
    mapping = TagMapping.objects.get(customer_external_id="alice")
    change_mapping(mapping.pk, at=mapping.valid_from, customer="bob", subscription=None, by="anna")


def _assigned(world: World) -> None:
    session = ChargingSession.objects.get(steve_id=1)
    review.assign(session.pk, customer="bob", subscription=None, note="it was his", by="anna")


def _moved(world: World) -> None:
    config = world.config()
    with open_clients(config) as (_, lago):
        directory, policy = LagoDirectory(lago, config.lago_metric_code), policy_of(config)
        given = {"policy": policy, "directory": directory}
        session_id = ChargingSession.objects.get(steve_id=1).pk
        for move in preview_move([session_id], customer="bob", subscription=None, **given):
            carry_out_move(move, note="it was his", by="anna", **given)


@pytest.mark.parametrize("act", [_to_bob, _assigned, _moved], ids=lambda act: act.__name__.strip("_"))
def test_whoever_chooses_another_payer_in_the_middle_of_a_run_has_one_of_the_two_pay(world, act, request):
    world.payer("TAG-ALICE", "alice")
    world.customer("bob")
    world.go_live()
    world.session("TAG-ALICE", energy_wh=7_000)
    chosen = moments(world)
    if not request.config.getoption("--long"):
        chosen = chosen[::-12]
    done = 0
    with saved(world) as start:
        for moment, boundary in chosen:
            start.restore()
            refused: list[Exception] = []

            def order(refused: list[Exception] = refused) -> None:
                try:
                    act(world)
                except (MappingError, MoveError, ReviewError, ChargingSession.DoesNotExist) as error:
                    refused.append(error)

            Meanwhile(order, moment).sync(world)
            world.sync()
            world.sync()
            done += not refused
            where = f"{boundary} ({moment}), {refused}"
            assert sorted([world.lago_wh("sub-alice"), world.lago_wh("sub-bob")]) == [0, 7_000], where
            world.assert_conserved()
    assert done
