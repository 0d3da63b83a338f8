"""One session's page: what was read, decided, sent and answered, with the numbers in place."""

import dataclasses
import html
import json
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from ocpp_billing.accounts.models import Role
from ocpp_billing.billing import review
from ocpp_billing.billing.models import Decision, LagoSubscription, UsageEvent
from ocpp_billing.charging.models import ChargingSession, IdTagParent
from tests.engine.conftest import live  # noqa: F401
from tests.engine.test_scenarios_delivering import revised
from tests.portal import ledger
from tests.portal.conftest import BACKEND, add_person


def text_of(answer):
    assert answer.status_code == 200
    main = answer.content.decode().partition("<main")[2]
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", main).split()))


@pytest.mark.parametrize("release", ["3.9.0"])
def test_a_charge_is_explained_from_the_plug_to_the_invoice(live):  # noqa: F811
    number = revised(live, 5_000, 8_000)
    live.sync()
    live.sync()
    session = ChargingSession.objects.get(steve_id=number)
    client = Client()
    client.force_login(add_person(Role.OPERATOR), backend=BACKEND)
    answer = client.get(f"/sessions/{session.pk}")
    text = text_of(answer)
    for part in (
        f"Session {number}",
        "8.000 kWh were delivered",
        "version 2",
        "Decided: bill it",
        "8.000 kWh ≤ 500 kWh",
        "kW ≤ 400 kW",
        "TAG-ALICE",
        "The mapping at the start of the session decides who pays.",
        "Usage event",
        "5.000 kWh to sub-alice",
        "Correction",
        "3.000 kWh to sub-alice",
        "Lago took it",
        "It counts 8.000 kWh of ours for this subscription and period",
    ):
        assert part in text, part
    for event in session.events.all():
        assert html.escape(event.payload) in answer.content.decode()  # to the byte, to be copied
    assert LagoSubscription.objects.get(external_id="sub-alice").lago_customer_id
    page = answer.content.decode()
    assert page.index("timeline-under") > page.index("5.000 kWh to sub-alice")
    assert page.index("timeline-under") < page.index("3.000 kWh to sub-alice")


@pytest.fixture
def shown(signed_in):
    def show(session, role=Role.OPERATOR):
        return text_of(signed_in(role).get(f"/sessions/{session.pk}"))

    return show


@pytest.mark.django_db
class TestOneSession:
    def test_a_held_one_says_why_by_which_number_and_what_to_do(self, shown, now):
        session = ledger.add_session(now, energy_wh=600_000, state="held", reason="implausible")
        ledger.add_decision(session, now, "hold", "implausible", says="600.000 kWh is more than 500 kWh")
        text = shown(session)
        assert "Implausible: More energy, power or time than a real session can have." in text
        assert "Decided: hold it" in text
        assert "600.000 kWh > 500 kWh" in text
        assert "600 kW > 400 kW" in text
        assert "Compare with the charge box's meter." in text
        assert "No usage event" in text

    def test_what_a_person_did_stands_there_with_the_note(self, shown, now):
        session = ledger.add_session(now, energy_wh=600_000, state="held", reason="implausible")
        review.accept(session.pk, note="It is a bus depot.", by="ada@example.org")
        text = shown(session)
        assert "Accepted a session ada@example.org It is a bus depot." in text
        assert "600.000 kWh > 500 kWh accepted by a person" in text
        assert "It is decided anew in the next run." in text

    def test_an_inherited_mapping_names_the_way_to_it(self, shown, now):
        session = ledger.add_session(now, tag="CARD-1")
        ledger.add_mapping(now, tag="FLEET-9")
        IdTagParent.objects.create(
            id_tag=session.id_tag, parent=ledger.add_tag("FLEET-9"), seen_from=now - timedelta(days=9)
        )
        text = shown(session)
        assert "Mapped CARD-1 its parent FLEET-9 customer" in text

    def test_an_unmapped_tag_and_a_switched_off_mapping_are_told_apart(self, shown, now):
        session = ledger.add_session(now, tag="T-1")
        assert "nobody would be invoiced" in shown(session)
        ledger.add_mapping(now, tag="T-1", active=False)
        assert "Mapping switched off" in shown(session)

    def test_an_open_and_a_stuck_one(self, shown, now):
        assert "Still charging" in shown(ledger.add_session(now, stopped_ago=None, state="open"))
        evidence = {"source": "meter_value", "stop_wh": 41_500, "at": None, "read_at": now.isoformat()}
        stuck = ledger.add_session(now, stopped_ago=None, state="stuck", evidence=evidence)
        text = shown(stuck)
        assert "Never stopped" in text
        assert "The last meter value of the session says 41.500 kWh." in text
        assert "Energy not known yet" in text

    def test_a_refused_event_shows_lagos_words(self, shown, now):
        session = ledger.add_session(now, state="rejected", reason="value_is_invalid")
        UsageEvent.objects.update(
            answer={"outcome": "rejected", "says": "code: not found", "status": 422}, first_attempt_at=now
        )
        assert "Lago refused it: code: not found (status 422)" in shown(session)

    def test_a_vanished_and_a_superseded_one_are_kept_and_said(self, shown, now):
        session = ledger.add_session(now)
        ChargingSession.objects.update(vanished_at=now, superseded_at=now)
        text = shown(session)
        assert "StEvE has not shown it since" in text
        assert "A restored StEvE gave this number to another session" in text

    def test_a_viewer_never_sees_the_tag_not_even_in_what_was_read_or_sent(self, signed_in, now):
        tag = "SECRET-7F3A"
        session = ledger.add_session(now, state="confirmed", tag=tag)
        ChargingSession.objects.update(raw={"ocppIdTag": tag, "nested": [tag.lower()]})
        UsageEvent.objects.update(
            payload=json.dumps({"properties": {"id_tag": tag}}), answer={"says": f"about {tag}"}
        )
        Decision.objects.update(says=f"{tag} is odd", outcome="hold", reason="implausible")
        review.acknowledge_identity(session.id_tag_id, note="same card", by="ada@example.org")
        seen = signed_in(Role.VIEWER).get(f"/sessions/{session.pk}").content.decode()
        assert "secret" not in seen.lower()
        assert "…7F3A" in seen
        assert tag in signed_in(Role.OPERATOR).get(f"/sessions/{session.pk}").content.decode()

    def test_a_viewer_does_not_see_the_tag_that_it_had_when_it_was_sent(self, signed_in, now):
        session = ledger.add_session(now, state="confirmed", tag="NEW-TAG-0001")
        UsageEvent.objects.update(payload=json.dumps({"properties": {"id_tag": "OLD-TAG-7F3A"}}))
        seen = signed_in(Role.VIEWER).get(f"/sessions/{session.pk}").content.decode()
        assert "OLD-TAG" not in seen
        assert "…7F3A" in seen

    def test_what_was_given_up_stays_on_its_page_in_words_and_counts_nowhere(self, shown, now):
        session = ledger.add_session(now, state="held", reason="late_period", energy_wh=5_000)
        given_up = ledger.add_event(session, now - timedelta(days=2), energy_wh=5_000, state="void")
        assert "Given up" not in shown(session)  # never sent: nobody outside of here knows it
        says = "Lago never got it and would not bill it any more"
        given_up.answer, given_up.given_up_at = {"outcome": "given up", "says": says}, now
        given_up.first_attempt_at, given_up.attempts = now - timedelta(days=2), 1
        given_up.save()
        text = shown(session)
        assert "5.000 kWh to subscription Given up" in text
        assert f"Lago does not bill it: {says}" in text
        assert "its energy is decided anew" in text
        assert "No other usage event Nothing is sent to Lago until its cause is resolved." in text
        assert "in Lago after all" not in text
        assert "Transaction id" not in text

    def test_one_that_was_given_up_before_another_billed_it_stands_beside_that(self, signed_in, now):
        session = ledger.add_session(now, state="confirmed")
        ledger.add_event(session, now, energy_wh=10_000, state="confirmed")
        ledger.add_event(session, now, energy_wh=500, state="queued")
        UsageEvent.objects.filter(n=1).update(
            state="void", attempts=1, given_up_at=now - timedelta(days=1), turned_up_at=now
        )
        page = signed_in().get(f"/sessions/{session.pk}").content.decode().partition('class="timeline"')[2]
        under = page.index("timeline-under")
        assert page.index(":1</span>") < page.index(":2</span>") < under < page.index(":3</span>")
        assert "write a credit note over it" in page
        assert "A person excluded what it carries" in page  # no other words of Lago's: it was excluded

    def test_one_that_lago_got_too_late_is_no_alarm(self, shown, now):
        session = ledger.add_session(now, state="confirmed")
        UsageEvent.objects.update(
            state="void", answer={"outcome": "given up", "says": "x"}, given_up_at=now, turned_up_at=now
        )
        assert "credit note" not in shown(session)

    def test_the_payers_page_in_lago_is_one_click_away(self, signed_in, now, settings):
        session = ledger.add_session(now, state="confirmed")
        client = signed_in()

        def link():
            page = client.get(f"/sessions/{session.pk}").content.decode()
            found = re.search(r'href="([^"]*)"[^>]*>(?:(?!</a>).)*Open in Lago', page, re.DOTALL)
            return found and found[1]

        front = "https://lago.example/app"
        settings.CONFIG = dataclasses.replace(settings.CONFIG, lago_front_url=front)
        assert link() is None  # Lago has not said how it calls the customer
        LagoSubscription.objects.create(
            lago_id="lago", external_id="subscription", external_customer_id="customer", plan_code="p",
            status="active", lago_customer_id="1a/2b", read_at=now,
        )  # fmt: skip
        assert link() == f"{front}/customer/1a%2F2b"
        settings.CONFIG = dataclasses.replace(settings.CONFIG, lago_front_url=None)
        assert link() is None

    def test_a_number_that_is_none_of_ours_says_so(self, signed_in):
        answer = signed_in().get("/sessions/4711")
        assert answer.status_code == 404
        assert "There is no session 4711." in answer.content.decode()

    def test_queries_do_not_grow_with_its_history(self, signed_in, now):
        client = signed_in()
        session = ledger.add_session(now, state="confirmed")

        def asked():
            with CaptureQueriesContext(connection) as queries:
                assert client.get(f"/sessions/{session.pk}").status_code == 200
            return len(queries)

        few = asked()
        for _ in range(3):
            ledger.add_event(session, now, energy_wh=100, state="queued")
        assert asked() <= few <= 30
