"""Needs attention: causes, the sessions of one, orders about many, and taking them back."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ocpp_billing.accounts.models import Role
from ocpp_billing.billing.models import Decision, LagoSubscription, Ruling, UsageEvent
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.portal import inbox
from ocpp_billing.sync.models import Alert
from tests.portal import ledger

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(signed_in):
    return signed_in(Role.OPERATOR)


def text_of(answer):
    return " ".join(answer.content.decode().split())


def decide(session, now, says, customer=None):
    Decision.objects.create(
        session=session,
        revision=1,
        outcome="hold",
        reason=session.reason,
        says=says,
        energy_wh=session.energy_wh or 0,
        external_customer_id=customer,
        decided_at=now - timedelta(minutes=5),
    )
    ChargingSession.objects.filter(pk=session.pk).update(needs_decision=False)
    return session


def held(now, reason, *, says="numbers in words", customer=None, **given):
    return decide(ledger.add_session(now, reason=reason, **given), now, says, customer)


def add_period(now, *, days, customer="alice"):
    LagoSubscription.objects.create(
        lago_id=f"lago-{customer}",
        external_id=f"sub-{customer}",
        external_customer_id=customer,
        plan_code="basic",
        status="active",
        period_from=now - timedelta(days=20),
        period_to=now + timedelta(days=days),
        read_at=now,
    )


# -- the inbox --------------------------------------------------------------------------------------------


def uncounted(now, *, energy_wh=8_000, subscription="sub-alice", says="Lago counts 0.000 kWh"):
    session = ledger.add_session(now, state="accepted", energy_wh=energy_wh)
    session.events.update(
        external_customer_id="alice",
        external_subscription_id=subscription,
        accepted_at=now - timedelta(days=2),
        uncounted_since=now - timedelta(days=1),
        uncounted_says=says,
    )
    return session


def test_what_lago_took_and_does_not_count_waits_too(operator, now):
    session = uncounted(now)
    uncounted(now, energy_wh=500, subscription="sub-2", says="Lago has no metric")
    ledger.add_session(now, state="accepted", energy_wh=70_000)
    page = text_of(operator.get("/attention"))
    assert "2 sessions wait for a person" in page
    assert "<strong>8.500 kWh</strong> at stake" in page
    assert "Lago took it, and it cannot be confirmed" in page
    assert page.index("Lago counts 0.000 kWh") < page.index("Lago has no metric")
    assert 'href="/billing-events?state=accepted&amp;subscription=sub-alice"' in page
    assert "Nothing waits for you" not in page
    assert inbox.count_waiting("main") == 2
    assert "Lago counts 0.000 kWh" in text_of(operator.get(f"/sessions/{session.pk}"))
    session.events.update(state="confirmed")
    assert inbox.count_waiting("main") == 1
    assert "Lago counts 0.000 kWh" not in text_of(operator.get(f"/sessions/{session.pk}"))


def test_an_alert_that_no_page_shows_stands_here(operator, now):
    for condition in ("events_turned_up", "not_confirmed", "steve_failing"):
        Alert.objects.create(
            source_id=ledger.add_source().pk, condition=condition, says=f"says {condition}", do="Act.",
            opened_at=now,
        )  # fmt: skip
    ledger.add_worker(now)
    page = text_of(operator.get("/attention"))
    listed = page[page.index("Open alerts") :]
    assert "says events_turned_up" in listed
    assert "says not_confirmed" not in page
    assert page.count("says steve_failing") == 1  # in its banner
    listed = text_of(operator.get("/sync"))
    listed = listed[listed.index("Open alerts") :]
    assert "says not_confirmed" in listed
    assert 'href="/attention"' in listed


def test_what_waits_is_grouped_by_cause_and_by_what_mends_it(operator, now):
    for energy_wh in (1_000, 2_500):
        held(now, "unmapped_tag", tag="TAG-7", energy_wh=energy_wh)
    held(now, "unmapped_tag", tag="TAG-8", energy_wh=500, says="no mapping of the tag was valid")
    held(now, "no_subscription", customer="alice", energy_wh=9_000)
    causes = {cause.reason: cause for cause in inbox.read_causes("main", now)}
    unmapped = causes["unmapped_tag"]
    assert (unmapped.sessions, unmapped.energy_wh, unmapped.clusters_in_all) == (3, 4_000, 2)
    assert [(each.name, each.sessions, each.energy_wh) for each in unmapped.clusters] == [
        ("TAG-7", 2, 3_500),
        ("TAG-8", 1, 500),
    ]
    assert [each.key for each in causes["no_subscription"].clusters] == ["alice"]
    page = text_of(operator.get("/attention"))
    assert "4 sessions wait for a person" in page
    assert "<strong>13.000 kWh</strong> at stake" in page
    assert "No mapping of the tag was valid" in page


def test_the_energy_of_a_cause_is_that_of_the_parts_that_wait(now):
    billed = ledger.add_session(now, state="accepted", energy_wh=5_000)
    ChargingSession.objects.filter(pk=billed.pk).update(
        state="held",
        reason="refund_by_credit_note",
        rest_state="held",
        rest_reason="refund_by_credit_note",
        rest_wh=-2_000,
        needs_decision=False,
    )
    rejected = ledger.add_session(now, state="rejected", reason="value_is_invalid", energy_wh=7_000)
    ChargingSession.objects.filter(pk=rejected.pk).update(needs_decision=False)
    evidence = {"source": "meter_value", "stop_wh": 4_000, "at": now.isoformat(), "read_at": now.isoformat()}
    ledger.add_session(now, stopped_ago=None, state="stuck", evidence=evidence)
    causes = {cause.reason or cause.state: cause for cause in inbox.read_causes("main", now)}
    assert causes["refund_by_credit_note"].energy_wh == -2_000
    assert causes["refund_by_credit_note"].clusters[0].key == "customer"
    assert causes["value_is_invalid"].energy_wh == 7_000
    assert (causes["stuck"].energy_wh, causes["stuck"].evidence_wh) == (0, 3_000)


def test_a_session_that_is_gone_from_steve_says_so_in_its_group(signed_in, now):
    session = ledger.add_session(now, stopped_ago=None, state="stuck", evidence=None)
    answer = signed_in(Role.OPERATOR).get("/attention/stuck/-")
    assert "gone from StEvE" not in answer.content.decode()
    ChargingSession.objects.filter(pk=session.pk).update(vanished_at=now)
    assert "gone from StEvE" in signed_in(Role.OPERATOR).get("/attention/stuck/-").content.decode()


def test_a_period_that_ends_soon_comes_before_more_energy(now):
    held(now, "no_subscription", customer="alice", energy_wh=10_000)
    held(now, "ambiguous_subscription", customer="bob", energy_wh=30_000)
    add_period(now, days=2, customer="alice")
    add_period(now, days=20, customer="bob")
    assert [cause.reason for cause in inbox.read_causes("main", now)] == [
        "no_subscription",
        "ambiguous_subscription",
    ]


def test_a_period_that_ends_today_has_no_days_left(operator, now):
    held(now, "no_subscription", customer="alice")
    add_period(now, days=0.5)
    assert "period ends within a day" in text_of(operator.get("/attention"))


def test_assigning_many_offers_the_subscriptions_that_lago_has_shown(operator, now):
    session = held(now, "no_subscription", customer="alice")
    add_period(now, days=2)
    assert '<option value="sub-alice">' in preview(operator, f"act=assign&id={session.pk}")[0]


def test_what_another_source_billed_is_left_there_or_billed_twice_with_a_warning(operator, now):
    billed = [held(now, "billed_by_another_source", says="STEVE_SOURCE pilot billed it") for _ in range(2)]
    known = held(now, "known_by_another_source", says="STEVE_SOURCE pilot has it ready")
    inbox_says = text_of(operator.get("/attention"))
    assert "as billed there" in inbox_says
    assert "10.000 kWh, here" in inbox_says
    page = text_of(operator.get("/attention/held/billed_by_another_source"))
    assert "STEVE_SOURCE pilot billed it" in page
    assert page.index("Leave as billed there") < page.index("Bill a second time")
    assert "It is the same tag" not in page
    one = operator.get(f"/sessions/{billed[0].pk}/accept").content.decode()
    assert "The customer pays twice unless the first bill was credited" in one
    assert "btn-danger" in one
    chosen = "&".join(f"id={session.pk}" for session in [*billed, known])
    page, _ = preview(operator, f"act=accept&{chosen}")
    assert "Bill 2 sessions, 20.000 kWh, a second time" in page
    assert "btn-danger" in page
    page, _ = preview(operator, "act=accept&state=held&reason=known_by_another_source")
    assert "taken from it and held there" in page
    assert "second time" not in page


def test_what_nothing_shows_is_no_amount_in_an_order(operator, now):
    nothing = {"source": "none", "stop_wh": None, "at": None, "read_at": now.isoformat()}
    stuck = ledger.add_session(now, stopped_ago=None, state="stuck", evidence=nothing)
    page, _ = preview(operator, f"act=exclude&id={stuck.pk}")
    assert "≈" not in page
    assert '<td class="number" data-label="kWh">\N{EN DASH}</td>' in page


def test_the_contract_finding_says_which_plan_to_mend(operator, now):
    held(
        now,
        "metric_not_charged",
        customer="alice",
        says="the plan basic has no charge for ev_charging_kwh; add it in Lago",
    )
    assert "The plan basic has no charge for ev_charging_kwh" in text_of(operator.get("/attention"))


def test_ten_thousand_tags_make_no_long_page(operator, now):
    for number in range(8):
        held(now, "unmapped_tag", tag=f"TAG-{number:02}", energy_wh=1_000 + number)
    page = text_of(operator.get("/attention"))
    assert "TAG-07" in page
    assert "TAG-00" not in page
    assert "and 3 more tags" in page


def test_what_was_ordered_leaves_the_inbox_until_it_is_decided(operator, now):
    session = held(now, "implausible", energy_wh=600_000)
    operator.post(f"/sessions/{session.pk}/exclude", {"note": "a test bench", "next": "/attention"})
    page = text_of(operator.get("/attention"))
    assert "Nothing waits for you" in page
    assert "What was ordered about 1 session is carried out in the next run" in page
    assert "Excluded: Session 1, 600.000 kWh." in page
    decide(session, now + timedelta(minutes=10), "still held")
    assert "Nothing waits for you" not in text_of(operator.get("/attention"))


def test_a_viewer_sees_masked_tags_and_no_act(signed_in, now):
    session = held(now, "unmapped_tag", tag="SECRET-7788")
    viewer = signed_in(Role.VIEWER)
    for path in (
        "/attention",
        "/attention/held/unmapped_tag",
        f"/attention/held/unmapped_tag?tag={session.id_tag_id}",
    ):
        page = text_of(viewer.get(path))
        assert "SECRET" not in page
        assert "7788" in page
        assert "Exclude" not in page
        assert "Assign" not in page


def test_the_menu_counts_what_waits(operator, now):
    held(now, "implausible")
    held(now, "unmapped_tag")
    ledger.add_session(now, reason="undecided")
    assert inbox.count_waiting("main") == 2
    assert '<span class="menu-count" aria-hidden="true">2<' in text_of(operator.get("/"))
    live = operator.get("/attention", headers={"HX-Request": "true"}).content.decode()
    assert 'id="menu-count" hx-swap-oob="true"' in live


# -- one cause --------------------------------------------------------------------------------------------


def test_the_sessions_of_a_cause_go_by_pages(operator, now, monkeypatch):
    monkeypatch.setattr("ocpp_billing.portal.attention.ROWS", 2)
    for _ in range(3):
        held(now, "implausible", says="600.000 kWh is more than 500 kWh")
    first = operator.get("/attention/held/implausible")
    assert first.content.decode().count('name="id"') == 2
    assert "600.000 kWh is more than 500 kWh" in text_of(first)
    assert "All 3:" in text_of(first)
    following = first.context["page"].next
    second = operator.get(f"/attention/held/implausible?cursor={following}")
    assert second.content.decode().count('name="id"') == 1


def test_numbers_of_sessions_above_a_thousand_stay_whole(operator, now):
    session = held(now, "implausible", energy_wh=600_000)
    ChargingSession.objects.filter(pk=session.pk).update(steve_id=123_456)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT setval(pg_get_serial_sequence('charging_session', 'id'), 5000 + %s)", [session.pk]
        )
    later = held(now, "implausible", energy_wh=600_000)
    page = text_of(operator.get("/attention/held/implausible"))
    assert f'name="id" value="{later.pk}"' in page
    assert "Choose session 123456" in page
    assert "session 123456" in text_of(operator.get(f"/sessions/{session.pk}/accept"))
    assert f'href="/sessions/{later.pk}/accept' in page


def test_a_cluster_shows_its_sessions_only(operator, now):
    mine = held(now, "unmapped_tag", tag="TAG-7")
    held(now, "unmapped_tag", tag="TAG-8")
    alice = held(now, "late_period", customer="alice")
    held(now, "late_period", customer="bob")
    page = operator.get(f"/attention/held/unmapped_tag?tag={mine.id_tag_id}")
    assert [row["session"].pk for row in page.context["rows"]] == [mine.pk]
    page = operator.get("/attention/held/late_period?customer=alice")
    assert [row["session"].pk for row in page.context["rows"]] == [alice.pk]


def test_a_rejected_session_shows_lagos_words(operator, now):
    session = ledger.add_session(now, state="rejected", reason="value_is_invalid")
    UsageEvent.objects.update(answer={"says": "value_is_invalid: timestamp"})
    page = text_of(operator.get("/attention/rejected/value_is_invalid"))
    assert "value_is_invalid: timestamp" in page
    assert f"/sessions/{session.pk}/retry" in page


@pytest.mark.parametrize("path", ["/attention/confirmed/x", "/attention/held/implausible?tag=x"])
def test_what_is_no_cause_is_not_found(operator, path, db):
    assert operator.get(path).status_code == 404


def test_a_cause_that_is_settled_says_so(operator, db):
    assert "Nothing waits here any more" in text_of(operator.get("/attention/held/implausible"))


def test_queries_do_not_grow_with_the_sessions(operator, now):
    def number_of(path):
        with CaptureQueriesContext(connection) as queries:
            assert operator.get(path).status_code == 200
        return len(queries)

    paths = (
        "/attention",
        "/attention/held/implausible",
        "/attention/act?act=exclude&state=held&reason=implausible",
    )
    held(now, "implausible")
    before = [number_of(path) for path in paths]
    for number in range(12):
        held(now, "implausible", customer=f"c-{number}")
    assert all(number_of(path) <= few for path, few in zip(paths, before, strict=True))
    assert max(before) <= 30


@pytest.mark.parametrize(
    ("until", "label", "leads"),
    [(None, "Switch the mapping on", "/switch"), (timedelta(hours=1), "Look at the mapping", "")],
)
def test_a_mapping_that_is_switched_off_is_switched_on_and_not_made_anew(operator, now, until, label, leads):
    mapping = ledger.add_mapping(now, tag="TAG-7", active=False, until=until)
    session = held(now, "mapping_inactive", tag="TAG-7")
    Decision.objects.update(mapping=mapping)
    for path in (
        "/attention",
        f"/attention/held/mapping_inactive?tag={session.id_tag_id}",
        f"/sessions/{session.pk}",
    ):
        page = text_of(operator.get(path))
        assert label in page
        assert f'href="/mappings/{mapping.pk}{leads}"' in page
        assert "/mappings/new?tag" not in page
    Decision.objects.update(mapping=ledger.add_mapping(now, tag="PARENT", active=False))
    assert "/mappings/new?tag=TAG-7" in text_of(operator.get(f"/sessions/{session.pk}"))


# -- orders about many ------------------------------------------------------------------------------------


def preview(client, query):
    answer = client.get(f"/attention/act?{query}")
    assert answer.status_code == 200
    return text_of(answer), {
        "act": answer.context["act"],
        "seen": answer.context["seen"],
        "next": "/attention",
    }


def test_a_selection_is_excluded_after_a_preview_that_names_it(operator, now):
    chosen = [held(now, "implausible", energy_wh=600_000, customer="alice") for _ in range(2)]
    other = held(now, "implausible", energy_wh=700_000)
    page, form = preview(operator, f"act=exclude&id={chosen[0].pk}&id={chosen[1].pk}")
    assert "Exclude 2 sessions: 1,200.000 kWh will not be billed." in page
    assert "alice 1,200.000 kWh" in page
    assert not Ruling.objects.exists()
    assert operator.post("/attention/act", form | {"note": " "}).status_code == 422
    answer = operator.post("/attention/act", form | {"note": "a test bench"}, follow=True)
    assert "Excluded: 2 sessions, 1,200.000 kWh." in text_of(answer)
    assert set(Ruling.objects.values_list("session_id", "note")) == {
        (session.pk, "a test bench") for session in chosen
    }
    assert [row["session"].pk for row in operator.get("/attention/held/implausible").context["rows"]] == [
        other.pk
    ]


def test_all_of_a_cluster_are_accepted_but_not_those_that_came_after_the_preview(operator, now):
    seen = held(now, "late_period", customer="alice")
    held(now, "late_period", customer="bob")
    page, form = preview(operator, "act=accept&state=held&reason=late_period&customer=alice")
    assert "Bill 1 session, 10.000 kWh, in the customer&#x27;s current billing period" in page
    held(now, "late_period", customer="alice")
    operator.post("/attention/act", form | {"note": ""})
    assert [ruling.session_id for ruling in Ruling.objects.all()] == [seen.pk]


def test_what_changed_meanwhile_is_left_and_named(operator, now):
    first, second, third = (held(now, "implausible", energy_wh=600_000) for _ in range(3))
    _, form = preview(operator, "act=accept&state=held&reason=implausible")
    ChargingSession.objects.filter(pk=second.pk).update(revision=2)
    ChargingSession.objects.filter(pk=third.pk).update(
        state="confirmed", rest_state=None, rest_reason=None, rest_wh=0
    )
    page = text_of(operator.post("/attention/act", form | {"note": ""}))
    assert "2 sessions were left as they are" in page
    assert "Session 2 has changed meanwhile" in page
    assert "Session 3 is not held (confirmed)" in page
    assert "Accepted: 1 session, 600.000 kWh." in page
    assert Ruling.objects.get().session_id == first.pk


def test_what_is_held_for_another_reason_or_amount_by_now_is_left(operator, now):
    late, less = held(now, "implausible", energy_wh=600_000), held(now, "implausible", energy_wh=600_000)
    _, form = preview(operator, "act=accept&state=held&reason=implausible")
    ChargingSession.objects.filter(pk=late.pk).update(reason="late_period")
    ChargingSession.objects.filter(pk=less.pk).update(rest_wh=5_000)
    page = text_of(operator.post("/attention/act", form | {"note": ""}))
    assert "2 sessions were left as they are" in page
    assert not Ruling.objects.exists()


def test_many_are_assigned_though_lago_is_away_and_that_is_said(operator, now, configured):
    for _ in range(2):
        held(now, "no_subscription")
    _, form = preview(operator, "act=assign&state=held&reason=no_subscription")
    answer = operator.post("/attention/act", form | {"customer": "bob", "subscription": ""}, follow=True)
    assert "Lago could not be asked whether it knows that customer" in text_of(answer)
    assert Ruling.objects.filter(customer_external_id="bob").count() == 2


def test_refunds_of_one_credit_note_are_settled_together(operator, now):
    for _ in range(2):
        session = ledger.add_session(now, state="confirmed", energy_wh=5_000)
        ChargingSession.objects.filter(pk=session.pk).update(
            state="held", reason="refund_by_credit_note",
            rest_state="held", rest_reason="refund_by_credit_note", rest_wh=-2_000,
        )  # fmt: skip
        session.refresh_from_db()
        decide(session, now, "-2.000 kWh differ")
    page, form = preview(operator, "act=credit&state=held&reason=refund_by_credit_note&customer=customer")
    assert "4.000 kWh of 2 sessions were credited in Lago by a credit note" in page
    operator.post("/attention/act", form | {"credit_note": "CN-7", "note": ""})
    assert UsageEvent.objects.filter(kind="credit", state="excluded", energy_wh=-2_000).count() == 2
    assert set(ChargingSession.objects.values_list("state", flat=True)) == {"confirmed"}


def test_nothing_chosen_says_so(operator, now):
    answer = operator.get(
        "/attention/act?act=exclude&selected=1&next=/attention/held/implausible", follow=True
    )
    assert "No session was chosen" in text_of(answer)


def test_what_is_no_order_is_refused(operator, db):
    assert operator.get("/attention/act?act=burn").status_code == 404
    assert operator.get("/attention/act?act=close&state=stuck").status_code == 404
    for path, given, says in (
        (
            "/attention/act",
            {"act": "exclude", "seen": "x", "note": "y"},
            "The list of sessions was not under",
        ),
        (
            "/attention/act",
            {"act": "exclude", "seen": "[1]", "note": "y"},
            "The list of sessions was not und",
        ),
        ("/attention/undo", {"first": "x"}, "What to take back was not understood."),
    ):
        assert says in text_of(operator.post(path, given, follow=True))


# -- taking back ------------------------------------------------------------------------------------------


def test_what_was_just_ordered_is_taken_back_together(operator, now):
    for _ in range(3):
        held(now, "implausible", energy_wh=600_000)
    _, form = preview(operator, "act=exclude&state=held&reason=implausible")
    operator.post("/attention/act", form | {"note": "wrong button"})
    (row,) = operator.get("/attention").context["orders"]
    order = row["order"]
    assert (order.sessions, order.energy_wh, order.revocable) == (3, 1_800_000, True)
    undo = {"kind": order.kind, "note": order.note, "first": order.first, "last": order.last}
    answer = operator.post("/attention/undo", undo, follow=True)
    assert "Taken back: 3 sessions." in text_of(answer)
    assert not Ruling.objects.filter(revoked_at=None).exists()
    assert answer.context["orders"] == []
    assert "There was nothing left to take back." in text_of(
        operator.post("/attention/undo", undo, follow=True)
    )


def test_what_was_sent_meanwhile_offers_no_way_back(operator, now):
    session = held(now, "implausible", energy_wh=600_000)
    operator.post(f"/sessions/{session.pk}/accept", {"note": "", "next": "/attention"})
    event = ledger.add_event(session, now, energy_wh=600_000, state="accepted")
    UsageEvent.objects.filter(pk=event.pk).update(created_at=now + timedelta(minutes=1))
    (row,) = operator.get("/attention").context["orders"]
    assert not row["order"].revocable
    assert "Undo" not in text_of(operator.get("/attention"))


def test_the_orders_of_others_are_not_taken_back(signed_in, operator, now):
    session = held(now, "implausible")
    operator.post(f"/sessions/{session.pk}/exclude", {"note": "x", "next": "/attention"})
    ruling = Ruling.objects.get()
    admin = signed_in(Role.ADMIN)
    assert admin.get("/attention").context["orders"] == []
    admin.post("/attention/undo", {"kind": "exclude", "note": "x", "first": ruling.pk, "last": ruling.pk})
    ruling.refresh_from_db()
    assert ruling.revoked_at is None


def test_a_viewer_may_look_and_may_not_act(signed_in, now):
    session = held(now, "implausible")
    viewer = signed_in(Role.VIEWER)
    assert viewer.get("/attention").status_code == 200
    assert viewer.get("/attention/held/implausible").status_code == 200
    for path in (
        "/attention/act",
        "/attention/undo",
        f"/sessions/{session.pk}/accept",
        f"/sessions/{session.pk}/close",
    ):
        assert viewer.get(path).status_code == 403
        assert viewer.post(path, {"note": "x"}).status_code == 403
    assert not Ruling.objects.exists()


@pytest.mark.parametrize("path", ["/attention", "/attention/held/identity_conflict"])
def test_a_decision_that_names_a_tag_does_not_name_it_to_a_viewer(signed_in, now, path):
    says = "StEvE now shows OTHER-CARD-2222 under the number of CARD-1111"
    held(now, "identity_conflict", tag="CARD-1111", says=says)
    assert says in text_of(signed_in(Role.OPERATOR).get(path))
    shown = text_of(signed_in(Role.VIEWER).get(path))
    assert "CARD-" not in shown
    assert "…1111" in shown
