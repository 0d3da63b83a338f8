"""Acts of a person about one session, each on a page of its own."""

import re
from datetime import timedelta

import pytest

from ocpp_billing.accounts.models import AuditEntry, Role
from ocpp_billing.billing.models import Ruling
from ocpp_billing.charging.models import ChargingSession, IdTag, Source
from ocpp_billing.effects import install_hook
from ocpp_billing.steve.capabilities import override
from ocpp_billing.sync.models import SyncRun
from tests.portal import ledger

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(signed_in):
    return signed_in(Role.OPERATOR)


def text_of(answer):
    return " ".join(answer.content.decode().split())


def test_a_held_session_is_accepted_with_a_note_and_a_run_is_asked_for(operator, now):
    session = ledger.add_session(now, reason="implausible", energy_wh=600_000)
    page = operator.get(f"/sessions/{session.pk}/accept?next=/")
    assert "Bill session 1, 600.000 kWh, although this rule speaks against it." in text_of(page)
    answer = operator.post(
        f"/sessions/{session.pk}/accept", {"note": "a bus depot", "next": "/"}, follow=True
    )
    assert answer.redirect_chain == [("/", 302)]
    assert "Session 1 is accepted." in text_of(answer)
    ruling = Ruling.objects.get()
    assert (ruling.kind, ruling.reason, ruling.note) == ("accept", "implausible", "a bus depot")
    assert ruling.by == "operator@example.org"
    assert AuditEntry.objects.get(action="session.accept").user.email == "operator@example.org"
    assert SyncRun.objects.get().requested_by == "operator@example.org"


def test_an_act_about_a_session_that_changed_since_it_was_shown_is_shown_again(operator, now):
    session = ledger.add_session(now, reason="late_period", energy_wh=6_000)
    address = f"/sessions/{session.pk}/accept"
    (seen,) = re.findall('name="seen" value="([^"]+)"', operator.get(address).content.decode())
    for change in ({"reason": "implausible"}, {"revision": session.revision + 1}, {"rest_wh": 600_000}):
        before = ChargingSession.objects.filter(pk=session.pk).values(*change).get()
        ChargingSession.objects.filter(pk=session.pk).update(**change)
        answer = operator.post(address, {"note": "", "seen": seen})
        assert answer.status_code == 409
        assert "The session has changed since this page was made" in text_of(answer)
        assert not Ruling.objects.exists()
        ChargingSession.objects.filter(pk=session.pk).update(**before)
    assert operator.post(address, {"note": "", "seen": seen}).status_code == 302
    assert Ruling.objects.get().reason == "late_period"


@pytest.fixture
def just_before():
    """A function: do something just before an effect of that name, once, as another operator would."""

    def install(name, change):
        def hook(called, phase):
            if (called, phase) == (name, "before"):
                install_hook(None)
                change()

        install_hook(hook)

    yield install
    install_hook(None)


def test_of_two_operators_the_second_orders_nothing_about_what_the_first_has_changed(
    operator, now, just_before
):
    session = ledger.add_session(now, reason="late_period", energy_wh=6_000)
    address = f"/sessions/{session.pk}/accept"
    (seen,) = re.findall('name="seen" value="([^"]+)"', operator.get(address).content.decode())
    rows = ChargingSession.objects.filter(pk=session.pk)
    just_before("db commit order", lambda: rows.update(reason="implausible"))
    answer = operator.post(address, {"note": "", "seen": seen})
    assert answer.status_code == 409
    assert "The session has changed since this page was made" in text_of(answer)
    assert not Ruling.objects.exists()

    (seen,) = re.findall('name="seen" value="([^"]+)"', answer.content.decode())
    assert operator.post(address, {"note": "", "seen": seen}).status_code == 302
    assert Ruling.objects.get().reason == "implausible"


def test_an_exclusion_without_a_note_is_asked_again(operator, now):
    session = ledger.add_session(now, reason="implausible", energy_wh=600_000)
    answer = operator.post(f"/sessions/{session.pk}/exclude", {"note": " "})
    assert answer.status_code == 422
    assert "This field is required." in text_of(answer)
    assert not Ruling.objects.exists()


@pytest.mark.parametrize("back", ["https://evil.example/", "//evil.example"])
def test_an_act_leads_back_to_no_other_site(operator, now, back):
    session = ledger.add_session(now, reason="implausible")
    answer = operator.post(f"/sessions/{session.pk}/exclude", {"note": "x", "next": back})
    assert "evil" not in answer.headers["Location"]


def test_what_is_not_open_any_more_says_so(operator, now):
    session = ledger.add_session(now, state="confirmed")
    for answer in (
        operator.get(f"/sessions/{session.pk}/accept"),
        operator.post(f"/sessions/{session.pk}/accept", {"note": "x"}),
    ):
        assert answer.status_code == 409
        assert "is not open for this session any more" in text_of(answer)


def test_an_unknown_act_or_session_is_not_found(operator, now):
    session = ledger.add_session(now, reason="implausible")
    assert operator.get(f"/sessions/{session.pk}/burn").status_code == 404
    assert operator.get(f"/sessions/{session.pk}/map").status_code == 404
    assert operator.get(f"/sessions/{session.pk + 1}/accept").status_code == 404


def test_a_reading_is_shown_before_it_is_entered(operator, now):
    evidence = {
        "source": "meter_value",
        "stop_wh": 41_500,
        "at": (now - timedelta(hours=2)).isoformat(),
        "read_at": now.isoformat(),
    }
    session = ledger.add_session(now, stopped_ago=None, state="stuck", evidence=evidence)
    session.started_at = now.replace(microsecond=0) - timedelta(hours=5)
    session.save(update_fields=["started_at"])
    page = text_of(operator.get(f"/sessions/{session.pk}/reading"))
    assert 'value="41.500"' in page
    assert "≈ 40.500 kWh" in page
    given = {
        "stop_kwh": "41.5",
        "stopped_at": f"{now - timedelta(hours=2):%Y-%m-%dT%H:%M:%S}",
        "note": "photo of the meter",
        "next": "/",
    }
    seen = text_of(operator.post(f"/sessions/{session.pk}/reading", given))
    assert "The session then delivered <strong>40.500 kWh</strong>. It lasted 3 h 0 min." in seen
    assert '<input type="hidden" name="seen_wh" value="40500">' in seen
    session.refresh_from_db()
    assert session.state == "stuck"
    other = text_of(operator.post(f"/sessions/{session.pk}/reading", given | {"seen_wh": "1"}))
    assert "40.500 kWh" in other
    assert operator.post(f"/sessions/{session.pk}/reading", given | {"seen_wh": "40500"}).status_code == 302
    session.refresh_from_db()
    assert (session.state, session.reading_stop_wh, session.energy_wh) == ("held", 41_500, 40_500)


def test_a_reading_below_the_start_is_refused_with_the_reason(operator, now):
    session = ledger.add_session(now, energy_wh=-400, reason="negative_energy")
    given = {"stop_kwh": "0.5", "stopped_at": f"{now:%Y-%m-%dT%H:%M:%S}", "note": "x"}
    answer = operator.post(f"/sessions/{session.pk}/reading", given)
    assert answer.status_code == 422
    assert "must be at least the start register" in text_of(answer)


def test_a_session_is_assigned_to_a_customer_though_lago_is_away(operator, now, configured):
    session = ledger.add_session(now, reason="unmapped_tag")
    answer = operator.post(
        f"/sessions/{session.pk}/assign", {"customer": "alice", "subscription": "", "next": "/"}, follow=True
    )
    assert "Session 1 is assigned. Lago could not be asked" in text_of(answer)
    ruling = Ruling.objects.get()
    assert (ruling.customer_external_id, ruling.subscription_external_id) == ("alice", None)


def test_a_rejected_event_is_sent_again(operator, now):
    session = ledger.add_session(now, state="rejected", reason="value_is_invalid")
    operator.post(f"/sessions/{session.pk}/retry", {"note": "the metric is there again", "next": "/"})
    session.refresh_from_db()
    assert session.state == "queued"
    assert AuditEntry.objects.get(action="event.retry").note == "the metric is there again"


def test_a_tag_is_acknowledged_for_all_its_sessions(operator, now):
    sessions = [ledger.add_session(now, reason="identity_conflict") for _ in range(2)]
    IdTag.objects.update(identity_conflict="StEvE's tag number 7 was TAG-1 and is now TAG-2")
    operator.post(f"/sessions/{sessions[0].pk}/acknowledge", {"note": "migrated", "next": "/"})
    assert IdTag.objects.get().identity_conflict is None


def test_closing_says_why_it_cannot_be_foretold(operator, now, configured):
    ledger.add_source()
    Source.objects.update(capabilities=override("3.14", has_username=True).to_dict(), base_url="")
    evidence = {"source": "meter_value", "stop_wh": 41_500, "at": now.isoformat(), "read_at": now.isoformat()}
    session = ledger.add_session(now, stopped_ago=None, state="stuck", evidence=evidence)
    answer = operator.get(f"/sessions/{session.pk}/close")
    assert answer.status_code == 409
    assert "localhost:9" in text_of(answer)
