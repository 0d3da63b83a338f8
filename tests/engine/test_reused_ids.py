"""Numbers that a database gives out again: MySQL up to 5.7 counts on from the highest number that is left.

An operator deletes a tag or a charge box, and with it the last transactions; after a restart of the database
other sessions have their numbers. The old ones were metered and billed, the new ones are, too: each once.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from ocpp_billing.billing import control
from ocpp_billing.charging.models import ChargingSession, IdTag

long = pytest.mark.long
every_family = pytest.mark.parametrize(
    "release", ["3.7.1", pytest.param("3.9.0", marks=long), pytest.param("3.10", marks=long), "3.14.1"]
)
HOUR = timedelta(hours=1)


@pytest.fixture
def reused(live):
    """Sessions of Alice's are known and billed, and the last ones, of Bob's at a charge point of his own."""
    for tag in ("TAG-ALICE", "TAG-BOB"):
        live.steve.add_tag(tag)
    for _ in range(8):
        live.session("TAG-ALICE", energy_wh=100)
    old = [live.session("TAG-BOB", "CP-BOB", energy_wh=200) for _ in range(2)]
    live.sync()
    return live, old


def delete(steve, what):
    if what == "tag":
        steve.delete_tag("TAG-BOB")
    else:
        steve.delete_charge_box("CP-BOB")


@every_family
@pytest.mark.parametrize("what", ["tag", "charge box"])
@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "unnoticed"])
def test_other_sessions_under_deleted_numbers_are_billed_beside_the_old_ones_after_a_look(
    reused, what, noticed
):
    world, old = reused  # what has a number that nobody had before may be billed before a person looks
    delete(world.steve, what)
    if noticed:
        world.sync()
    world.steve.restart_database()
    new = [world.session("TAG-ALICE", "CP-NEW", energy_wh=50) for _ in range(3)]
    assert new[:2] == old
    for _ in range(2):
        world.watch()
        world.sync()
    status = control.read_status(world.config())
    assert (status.mode, world.lago_wh("sub-bob")) == ("paused", 400)
    assert f"ids after {old[0] - 1} mean new sessions" in (status.pause_reason or "")
    superseded = ChargingSession.objects.exclude(superseded_at=None)
    assert [*superseded.order_by("steve_id").values_list("steve_id", "state")] == [
        (number, "confirmed") for number in old
    ]
    world.resume()
    world.sync()
    world.sync()
    assert {world.state_of(number) for number in new} == {("confirmed", None)}
    assert (world.lago_wh("sub-alice"), world.lago_wh("sub-bob")) == (800 + 150, 400)
    world.assert_conserved()


@pytest.mark.parametrize("release", ["3.7.1", "3.14.1"])
def test_a_deleted_tags_number_that_another_tag_gets_bills_nobody_else(reused):
    world, old = reused
    world.payer("TAG-CAROL", "carol")
    world.clock.advance(2 * HOUR)
    world.sync()  # the list of tags is read
    number = IdTag.objects.get(text="TAG-BOB").steve_pk
    world.steve.delete_tag("TAG-BOB")
    world.steve.restart_database()
    assert world.steve.add_tag("TAG-CAROL").pk == number
    new = world.session("TAG-CAROL", "CP-BOB", energy_wh=50)
    assert new == old[0]
    world.clock.advance(2 * HOUR)
    world.sync()
    world.resume()
    world.sync()
    assert world.state_of(new) == ("confirmed", None)
    assert {name: world.lago_wh(f"sub-{name}") for name in ("alice", "bob", "carol")} == {
        "alice": 800,
        "bob": 400,
        "carol": 50,
    }
    world.assert_conserved()
