"""Orders of a person: refunds that were credited by hand, many at once, and taking them back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ocpp_billing.accounts.models import AuditEntry
from ocpp_billing.billing import review
from ocpp_billing.billing.bulk import order_each, standing
from ocpp_billing.billing.models import Ruling, UsageEvent
from ocpp_billing.billing.offers import Act, acts_of
from ocpp_billing.billing.refunds import settle_refund
from ocpp_billing.billing.review import ReviewError
from ocpp_billing.billing.undo import revoke
from ocpp_billing.charging.models import ChargingSession
from tests.crash.stories import show_stop
from tests.engine.test_scenarios_delivering import move, revised, session_of

pytestmark = pytest.mark.parametrize("release", ["3.9.0"])

LAST_DAY = datetime(2026, 3, 31, 12, tzinfo=UTC)


def refund(world, billed_wh, then_wh):
    """A session billed in advance, so that Lago pays nothing back, then revised downwards."""
    world.plan("ev_advance", pay_in_advance_charge=True)
    world.payer("TAG-ALICE", "alice", plan="ev_advance")
    world.go_live()
    session = revised(world, billed_wh, then_wh)
    world.sync()
    assert world.state_of(session) == ("held", "refund_by_credit_note")
    return session


def credit(steve_id):
    settle_refund(session_of(steve_id).pk, credit_note="CN-7", note="sent by post", by="test")


def charged_twice(world):
    """A session charged in advance, of whose one event Lago made two fees before it was confirmed."""
    world.plan("ev_advance", pay_in_advance_charge=True)
    world.payer("TAG-ALICE", "alice", plan="ev_advance")
    world.go_live()
    session = world.session("TAG-ALICE", energy_wh=5_000)
    world.sync(confirm_settle_seconds=3_600)
    assert world.state_of(session) == ("accepted", None)
    books = world.lago.books
    (fee,) = books.fees
    books.fees.append(replace(fee, lago_id="another"))
    posts = world.posts()
    world.clock.advance(hours=2)
    world.sync()
    assert world.posts() == posts
    assert world.state_of(session) == ("held", "charged_twice")
    return session


# -- refunds ----------------------------------------------------------------------------------------------


def test_a_refund_credited_by_hand_is_settled_and_stays_so(world):
    session = refund(world, 5_000, 3_000)
    credit(session)
    assert world.state_of(session)[0] in {"accepted", "confirmed"}
    world.sync()
    world.clock.advance(timedelta(days=1))
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    balance = world.balance()
    assert balance.reasons["credited"].energy_wh == -2_000
    assert balance.states["excluded"].energy_wh == -2_000
    assert balance.states["confirmed"].energy_wh == 5_000
    entry = AuditEntry.objects.get(action="session.credit")
    assert entry.after == {"credited_wh": 2_000, "credit_note": "CN-7"}
    world.assert_conserved()


def test_what_was_credited_is_billed_again_when_the_session_grows(world):
    session = refund(world, 5_000, 3_000)
    credit(session)
    world.show_as(session, stopValue=str(session_of(session).start_wh + 5_500))
    world.sync()
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert world.lago_wh_by_session() == {session: 7_500}  # 5.5 kWh, and the 2 that were given back
    world.assert_conserved()


def test_only_what_is_still_too_much_is_to_be_refunded_when_the_session_shrinks_again(world):
    session = refund(world, 5_000, 3_000)
    credit(session)
    world.show_as(session, stopValue=str(session_of(session).start_wh + 2_500))
    world.sync()
    assert world.state_of(session) == ("held", "refund_by_credit_note")
    assert session_of(session).rest_wh == -500
    world.assert_conserved()


def test_a_credit_is_taken_back_and_the_refund_is_open_again(world):
    session = refund(world, 5_000, 3_000)
    credit(session)
    revoke(Ruling.objects.get().pk, by="test")
    world.sync()
    assert world.state_of(session) == ("held", "refund_by_credit_note")
    assert session_of(session).rest_wh == -2_000
    world.assert_conserved()
    credit(session)
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    world.assert_conserved()


def test_a_refund_needs_the_number_of_its_credit_note_and_is_settled_once(world):
    session = refund(world, 5_000, 3_000)
    with pytest.raises(ReviewError, match="number of the credit note"):
        settle_refund(session_of(session).pk, credit_note=" ", by="test")
    credit(session)
    with pytest.raises(ReviewError, match="No refund"):
        credit(session)


def test_the_refund_of_a_move_is_credited_and_taken_back(world):
    world.plan("ev_advance", pay_in_advance_charge=True)
    world.payer("TAG-CAROL", "carol", plan="ev_advance")
    world.customer("bob")
    world.go_live()
    session = world.session("TAG-CAROL", energy_wh=5_000)
    world.sync()
    move(world, session, "bob")
    world.sync()
    world.sync()
    assert world.state_of(session) == ("held", "refund_by_credit_note")
    credit(session)
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert world.balance().reasons["credited"].energy_wh == -5_000
    world.assert_conserved()
    revoke(Ruling.objects.get().pk, by="test")
    world.sync()
    assert world.state_of(session) == ("held", "refund_by_credit_note")
    world.assert_conserved()


def test_an_event_that_lago_charged_twice_waits_for_a_credit_note(world):
    """It is shown with what is too much, nothing is sent, and it is confirmed once a person has credited that."""
    session = charged_twice(world)
    posts = world.posts()
    says = UsageEvent.objects.get().answer["says"]
    assert "Lago made 2 fees of this one event (5.0 kWh for 1.95 EUR, 5.0 kWh for 1.95 EUR)" in says
    assert "5.0 kWh, 1.95 EUR, is charged too much. Write a credit note" in says
    found = session_of(session)
    assert acts_of([found], closable=True) == {found.pk: [Act.CREDIT]}
    world.clock.advance(timedelta(days=1))
    world.sync()
    assert world.state_of(session) == ("held", "charged_twice")
    credit(session)
    assert world.state_of(session) == ("confirmed", None)
    assert world.balance().states["confirmed"].energy_wh == 5_000
    revoke(Ruling.objects.get().pk, by="test")
    world.sync()
    assert world.state_of(session) == ("held", "charged_twice")
    assert UsageEvent.objects.get().answer["says"] == says
    credit(session)
    world.clock.advance(timedelta(days=1))
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert world.posts() == posts
    world.assert_conserved()


def test_one_credit_note_settles_one_debt(world):
    """Lago charged it twice, and StEvE lowers what it delivered: two surpluses, and two credit notes."""
    session = charged_twice(world)
    with pytest.raises(ReviewError, match=r"charged an event of session .* twice"):
        review.exclude(session_of(session).pk, note="forget it", by="test")
    show_stop(world, session, 3_000)
    world.sync()
    assert world.state_of(session) == ("held", "charged_twice")
    credit(session)
    assert world.state_of(session) == ("held", "refund_by_credit_note")
    assert UsageEvent.objects.get(kind="original").state == "confirmed"
    credit(session)
    world.sync()
    assert world.state_of(session)[0] in {"confirmed", "excluded"}
    assert world.balance().reasons["credited"].energy_wh == -2_000
    world.assert_conserved()


def test_a_session_that_was_partly_credited_is_moved_with_what_is_left(world):
    session = refund(world, 5_000, 3_000)
    world.customer("bob")
    credit(session)
    world.sync()
    assert move(world, session, "bob").energy_wh == 3_000
    world.sync()
    world.sync()
    assert world.lago_wh("sub-bob") == 3_000
    world.assert_conserved()


# -- corrections ------------------------------------------------------------------------------------------


def test_a_refused_correction_leaves_the_session_as_it_was_billed(live):
    session = revised(live, 5_000, 65_000)
    live.sync()
    assert live.state_of(session) == ("held", "changed_after_billing")
    review.exclude(session_of(session).pk, note="the meter was replaced", by="test")
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.balance().reasons["by_operator"].energy_wh == 60_000
    assert live.lago_wh_by_session() == {session: 5_000}
    live.assert_conserved()


# -- many at once -----------------------------------------------------------------------------------------


def test_an_order_about_many_says_what_became_of_each(live):
    held = [live.session("TAG-NEW", f"CP-{number}", energy_wh=1_000) for number in range(3)]
    billed = live.session("TAG-ALICE", "CP-9", energy_wh=4_000)
    live.sync()
    ids = {steve_id: session_of(steve_id).pk for steve_id in (*held, billed)}
    seen = {session.pk: standing(session) for session in ChargingSession.objects.filter(pk__in=ids.values())}
    seen |= {ids[held[0]]: "0.unmapped_tag.1000", 10**9: "1.None.0"}
    outcomes = order_each(seen, lambda session_id: review.exclude(session_id, note="a test", by="test"))
    assert [(each.steve_id, each.energy_wh, each.refused is None) for each in outcomes] == [
        (held[0], 1_000, False),
        (held[1], 1_000, True),
        (held[2], 1_000, True),
        (billed, 4_000, False),
    ]
    assert "has changed meanwhile" in outcomes[0].refused
    assert "Lago cannot take an event back" in outcomes[-1].refused
    live.sync()
    states = [live.state_of(steve_id) for steve_id in held]
    assert states == [("held", "unmapped_tag"), ("excluded", "by_operator"), ("excluded", "by_operator")]
    assert AuditEntry.objects.filter(action="session.exclude").count() == 2
    live.assert_conserved()


# -- taking back ------------------------------------------------------------------------------------------


def test_an_exclusion_is_taken_back_and_the_rules_decide_again(live):
    session = live.session("TAG-NEW", energy_wh=1_000)
    live.sync()
    review.exclude(session_of(session).pk, note="a test", by="test")
    live.sync()
    ruling = Ruling.objects.get()
    revoke(ruling.pk, by="test")
    live.sync()
    assert live.state_of(session) == ("held", "unmapped_tag")
    with pytest.raises(ReviewError, match="taken back already"):
        revoke(ruling.pk, by="test")
    assert AuditEntry.objects.get(action="session.revoke").before["order"] == "exclude"
    live.assert_conserved()


def test_the_exclusion_of_a_session_that_never_stopped_is_taken_back(live):
    session = live.start("TAG-ALICE")
    live.sync()
    review.exclude(session_of(session).pk, note="a test", by="test")
    live.sync()
    assert live.state_of(session) == ("excluded", "by_operator")
    revoke(Ruling.objects.get().pk, by="test")
    live.sync()
    assert live.state_of(session)[0] in {"open", "stuck"}
    assert ChargingSession.objects.get().energy_wh is None
    live.assert_conserved()
    live.stop(session, meter_wh=session_of(session).start_wh + 6_000, at=timedelta(0))
    live.sync()
    assert live.lago_wh_by_session() == {session: 6_000}


def test_an_acceptance_is_taken_back_until_the_session_was_sent(live):
    session = live.session("TAG-ALICE", energy_wh=900_000)
    live.sync()
    assert live.state_of(session) == ("held", "implausible")
    live.pause()
    review.accept(session_of(session).pk, note="a bus depot", by="test")
    live.sync()
    assert live.state_of(session) == ("queued", None)
    revoke(Ruling.objects.get().pk, by="test")
    live.resume()
    live.sync()
    assert live.state_of(session) == ("held", "implausible")
    assert live.posts() == []
    review.accept(session_of(session).pk, note="it is right", by="test")
    live.sync()
    with pytest.raises(ReviewError, match="was carried out"):
        revoke(Ruling.objects.latest("id").pk, by="test")
    assert UsageEvent.objects.exclude(state="void").count() == 1
    live.assert_conserved()


def test_an_assignment_is_taken_back_and_the_mapping_decides_again(live):
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.pause()
    live.sync()
    review.assign(session_of(session).pk, customer="bob", subscription=None, note="", by="test")
    live.sync()
    revoke(Ruling.objects.get().pk, by="test")
    live.resume()
    live.sync()
    assert (live.lago_wh("sub-alice"), live.lago_wh("sub-bob")) == (1_000, 0)
    live.assert_conserved()


# -- what Lago refused ------------------------------------------------------------------------------------


def test_a_rejected_session_is_excluded_and_that_is_final(live):
    session = live.session("TAG-ALICE", energy_wh=1_000)
    live.pause()
    live.sync()
    # As delivery writes down what Lago refused.
    UsageEvent.objects.update(state="rejected", reason="value_is_invalid", attempts=1)
    ChargingSession.objects.update(state="rejected", reason="value_is_invalid")
    review.exclude(session_of(session).pk, note="a test", by="test")
    live.resume()
    live.sync()
    assert live.state_of(session) == ("excluded", "by_operator")
    assert live.posts() == []
    with pytest.raises(ReviewError, match="was carried out"):
        revoke(Ruling.objects.get().pk, by="test")
    live.assert_conserved()


# -- a conflict in Lago -----------------------------------------------------------------------------------


def test_a_conflict_that_was_put_right_in_lago_by_hand_is_settled_for_good(world):
    """Charged in advance, stored and never charged: nothing of ours can mend that, a person can."""
    world.plan("ev_advance", pay_in_advance_charge=True)
    world.payer("TAG-ALICE", "alice", plan="ev_advance")
    world.go_live()
    world.lago.lose_jobs(1)
    steve_id = world.session("TAG-ALICE", energy_wh=5_000)
    world.sync()
    world.clock.advance(timedelta(days=1))
    world.sync()
    assert world.state_of(steve_id) == ("held", "conflict_in_lago")
    review.exclude(session_of(steve_id).pk, note="invoiced by hand as LAG-7", by="test")
    posts = len(world.posts())
    world.sync()
    assert world.state_of(steve_id) == ("excluded", "by_operator")
    assert len(world.posts()) == posts
    assert world.balance().states["excluded"].energy_wh == 5_000
    world.assert_conserved()
    with pytest.raises(ReviewError, match="was carried out"):
        revoke(Ruling.objects.get(kind="exclude").pk, by="test")


def test_a_billed_session_that_turns_out_empty_is_taken_back_where_lago_honours_that(live):
    session = revised(live, 5_000, 0)
    live.sync()
    live.clock.advance(timedelta(minutes=5))
    live.sync()
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh() == 0
    assert [event.energy_wh for event in session_of(session).events.order_by("n")] == [5_000, -5_000]
    live.assert_conserved()


def test_of_two_corrections_the_second_waits_while_lago_does_not_count_the_first(live):
    first, second = (live.session("TAG-ALICE", energy_wh=energy_wh) for energy_wh in (5_000, 3_000))
    live.sync()
    live.others_send("sub-alice", "-2.000")  # somebody else took 2 kWh back
    live.session("TAG-ALICE", energy_wh=1_000)
    live.sync()  # Lago is asked what it counts for the third: 7 kWh
    live.lago.delay_usage(3600)  # what comes now is counted, and not yet shown as counted
    live.show_as(first, stopValue=str(session_of(first).start_wh + 500))
    live.sync()
    live.show_as(second, stopValue=str(session_of(second).start_wh + 400))
    live.sync()
    assert live.state_of(second) == ("held", "refund_by_credit_note")
    assert live.lago_wh("sub-alice") == 2_500
    live.assert_conserved()
