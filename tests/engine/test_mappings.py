"""Who pays: the mapping valid at the start of the session, the tag's own or an ancestor's."""

from __future__ import annotations

from datetime import timedelta

HOUR = timedelta(hours=1)


def test_an_unmapped_session_is_held_and_billed_by_the_next_run_after_mapping(world):
    world.customer("alice")
    world.go_live()
    session = world.session("TAG-ALICE", energy_wh=12_345)
    run = world.sync()
    assert (run.status, run.counts["held"]) == ("completed", 1)
    assert world.state_of(session) == ("held", "unmapped_tag")
    world.map("TAG-ALICE", "alice")
    run = world.sync()
    assert (run.counts["queued"], run.counts["confirmed"]) == (1, 1)
    assert world.state_of(session) == ("confirmed", None)
    assert world.lago_wh("sub-alice") == 12_345
    world.assert_conserved()


def test_a_mapping_that_began_after_the_session_did_does_not_pay_for_it(world):
    world.customer("alice")
    world.go_live()
    session = world.session("TAG-ALICE", start=2 * HOUR, stop=HOUR)
    world.map("TAG-ALICE", "alice", since=world.clock.now() - 2 * HOUR + timedelta(seconds=1))
    world.sync()
    assert world.state_of(session) == ("held", "unmapped_tag")
    assert world.posts() == []


def test_the_mapping_at_the_start_pays_also_when_it_ended_during_the_session(world):
    world.customer("alice")
    world.customer("bob")
    world.go_live()
    change_at = world.clock.now() - 2 * HOUR
    world.map("TAG-SHARED", "alice", until=change_at)
    world.map("TAG-SHARED", "bob", since=change_at)
    world.session("TAG-SHARED", start=3 * HOUR, stop=HOUR, energy_wh=1_000)
    world.session("TAG-SHARED", start=change_at, stop=HOUR / 2, energy_wh=4_000)
    world.sync()
    assert (world.lago_wh("sub-alice"), world.lago_wh("sub-bob")) == (1_000, 4_000)
    world.assert_conserved()


def test_a_tag_is_one_whatever_its_case(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("tag-alice")
    world.sync()
    assert world.state_of(session) == ("confirmed", None)


def test_a_tag_without_its_own_mapping_inherits_its_parents(world):
    world.payer("FLEET", "fleet")
    world.go_live()
    world.steve.add_tag("FLEET")
    world.steve.add_tag("VAN", parent="FLEET")
    world.steve.add_tag("DRIVER", parent="VAN")
    session = world.session("DRIVER", energy_wh=6_000)
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert world.lago_wh("sub-fleet") == 6_000
    world.assert_conserved()


def test_an_inactive_own_mapping_does_not_fall_back_to_the_parent(world):
    world.payer("FLEET", "fleet")
    world.go_live()
    world.steve.add_tag("FLEET")
    world.steve.add_tag("VAN", parent="FLEET")
    world.map("VAN", "fleet", active=False)
    session = world.session("VAN")
    world.sync()
    assert world.state_of(session) == ("held", "mapping_inactive")
    assert world.posts() == []
    world.assert_conserved()


def test_a_mapping_may_name_one_of_several_subscriptions(world):
    world.customer("alice", "home")
    world.customer("alice", "work")
    world.map("TAG-HOME", "alice", subscription="home")
    world.map("TAG-WORK", "alice", subscription="work")
    world.go_live()
    world.session("TAG-HOME", "CP-1", energy_wh=1_000)
    world.session("TAG-WORK", "CP-2", energy_wh=2_000)
    world.sync()
    assert (world.lago_wh("home"), world.lago_wh("work")) == (1_000, 2_000)
    world.assert_conserved()


def test_a_mapping_made_later_never_rewrites_what_was_billed(world):
    world.payer("FLEET", "fleet")
    world.customer("alice")
    world.go_live()
    world.steve.add_tag("FLEET")
    world.steve.add_tag("VAN", parent="FLEET")
    world.session("VAN", energy_wh=3_000)
    world.sync()
    world.map("VAN", "alice")
    world.sync()
    assert (world.lago_wh("sub-fleet"), world.lago_wh("sub-alice")) == (3_000, 0)
    assert len(world.posts()) == 1
    world.assert_conserved()
