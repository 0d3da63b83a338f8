"""Two acts meet: what one person saw is not what is there any more, or one cause ends while another stays."""

from __future__ import annotations

import pytest

from ocpp_billing.billing import control
from ocpp_billing.billing.adopt import PAUSE_REASON
from ocpp_billing.billing.control import ControlError
from ocpp_billing.billing.move import MoveError, carry_out_move, preview_move
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.lago.directory import LagoDirectory
from ocpp_billing.sync.clients import open_clients
from ocpp_billing.sync.policy import policy_of

RESTORED = "StEvE was restored from a backup: ids after 7 mean new sessions now."
UNKNOWN = PAUSE_REASON.format(example="steve:main:7-0:1", source="main")
REFUSED = f"{control.KEY_REFUSED} (401)."


# -- moves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["bob", "carol"])
def test_a_move_that_was_previewed_before_another_one_was_carried_out_is_refused(world, second):
    world.payer("TAG-ALICE", "alice")
    world.customer("bob")
    world.customer("carol")
    world.go_live()
    world.session("TAG-ALICE", energy_wh=7_000)
    world.sync()
    with open_clients(world.config()) as (_, lago):
        directory, policy = LagoDirectory(lago, "ev_charging_kwh"), policy_of(world.config())
        given = {"policy": policy, "directory": directory}
        (session_id,) = ChargingSession.objects.values_list("pk", flat=True)
        ours, theirs = (
            preview_move([session_id], customer=customer, subscription=None, **given)
            for customer in ("bob", second)
        )
        carry_out_move(ours[0], note="it was his", by="anna", **given)
        world.sync()
        world.sync()
        with pytest.raises(MoveError, match="has changed since the preview"):
            carry_out_move(theirs[0], note="it was hers", by="ben", **given)
    world.sync()
    assert [world.lago_wh(f"sub-{name}") for name in ("alice", "bob", "carol")] == [0, 7_000, 0]
    world.assert_conserved()


# -- pauses ----------------------------------------------------------------------------------------------


def by_itself(world, reason):
    control.pause(world.config(), by=control.BY_ITSELF, reason=reason)


def status(world):
    return control.read_status(world.config())


def test_what_a_person_ordered_outlasts_a_refused_key(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.session("TAG-ALICE")
    assert world.sync(lago_api_key="revoked").status == "failed"
    assert status(world).paused_by == control.BY_ITSELF
    world.pause("we look into something")
    world.sync()
    assert (status(world).mode, status(world).paused_by) == ("paused", "test")
    assert status(world).pause_reason == "we look into something"  # the other one is over
    assert world.posts() == []
    world.resume()
    world.sync()
    assert world.lago_wh() == 10_000


@pytest.mark.parametrize("first", [REFUSED, control.ADOPTING, UNKNOWN])
def test_a_restored_steve_waits_for_a_person_whatever_else_is_over(world, first):
    world.go_live()
    by_itself(world, first)
    by_itself(world, RESTORED)
    by_itself(world, first)  # found again, as in every run
    control.resume_after_refused_key(world.config(), status(world))
    control.resume_after_adopting(world.config(), by="test")
    assert status(world).pause_reason.startswith(RESTORED)
    world.resume()
    assert status(world).mode == "live"


def test_adopting_ends_its_own_pause_and_that_of_unknown_events_only(world):
    world.go_live()
    for reason in (control.ADOPTING, UNKNOWN):
        by_itself(world, reason)
        assert control.resume_after_adopting(world.config(), by="test").mode == "live"
    by_itself(world, RESTORED)
    by_itself(world, control.ADOPTING)
    assert control.resume_after_adopting(world.config(), by="test").pause_reason == RESTORED


def test_adopting_before_going_live_leaves_no_pause_behind(world):
    by_itself(world, control.ADOPTING)
    assert (status(world).mode, status(world).paused_by) == ("shadow", control.BY_ITSELF)
    assert control.resume_after_adopting(world.config(), by="test").mode == "shadow"
    world.go_live()
    assert status(world).mode == "live"


def test_a_pause_before_going_live_is_shown_and_counts_from_then_on(world):
    world.pause("the mappings are not complete")
    assert status(world).mode == "shadow"
    world.go_live()
    assert (status(world).mode, status(world).pause_reason) == ("paused", "the mappings are not complete")


def test_a_cause_that_comes_during_a_persons_pause_is_told_once_and_ends_with_it(world):
    world.go_live()
    world.pause("a look at the mappings")
    seen = status(world)
    for reason in (REFUSED, RESTORED, RESTORED, RESTORED.replace("7", "8")):
        by_itself(world, reason)
    assert status(world).pause_reason == f"a look at the mappings. Besides, it stopped by itself: {RESTORED}"
    with pytest.raises(ControlError, match="StEvE was restored"):
        control.resume(world.config(), by="test", seen=seen)
    assert control.resume(world.config(), by="test", seen=status(world))


def test_a_person_takes_over_a_pause_that_came_by_itself_and_its_cause_stays_to_be_seen(world):
    world.go_live()
    by_itself(world, RESTORED)
    world.pause("I look at it")
    assert status(world).paused_by == "test"
    assert status(world).pause_reason == f"I look at it. Besides, it stopped by itself: {RESTORED}"


def test_a_valid_key_does_not_end_a_pause_that_came_after_it_was_read(world):
    world.go_live()
    by_itself(world, REFUSED)
    read = status(world)
    world.pause("just now")
    assert control.resume_after_refused_key(world.config(), read).paused_by == "test"
