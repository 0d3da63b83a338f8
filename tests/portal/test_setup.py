"""Set-up, going live, pausing and resuming: the way from an empty installation to the first bill."""

import dataclasses
import html
import re
from datetime import timedelta

import pytest

from ocpp_billing.accounts.models import AuditEntry, Role
from ocpp_billing.billing import control
from ocpp_billing.billing.models import DeliveryControl
from ocpp_billing.sync.models import Alert
from tests.portal import ledger

HOUR = timedelta(hours=1)


def words(answer):
    text = re.sub(r"<(title|desc)\b.*?</\1>|<[^>]+>", " ", answer.content.decode(), flags=re.DOTALL)
    return " ".join(text.split())


# -- the checklist ------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_an_empty_installation_is_told_what_to_set(signed_in):
    text = words(signed_in().get("/setup"))
    assert "0 of 4 steps are done. Nothing is sent to Lago before the last one." in text
    for name in ("STEVE_API_URL", "STEVE_API_KEY", "LAGO_API_KEY"):
        assert f"{name} is not set:" in text


def test_each_step_is_ticked_off_as_it_is_done(world, operated):
    client = operated()
    assert "0 of 4 steps" in words(client.get("/setup"))
    unmapped = world.session("TAG-7", energy_wh=3_000)
    world.sync()
    text = words(client.get("/setup"))
    assert "2 of 4 steps" in text
    assert "1 session with 3.000 kWh waits for a customer." in text
    world.payer("TAG-7", "alice")
    world.sync()
    text = words(client.get("/setup"))
    assert "3 of 4 steps" in text
    assert "1 session with 3.000 kWh would be billed as things stand." in text
    assert world.state_of(unmapped) == ("queued", None)
    world.go_live()
    assert "Everything is set up." in words(client.get("/setup"))


def test_both_systems_are_asked_when_somebody_looks(world, operated):
    client = operated(Role.OPERATOR)
    assert "The API answers at http://" in words(client.get("/setup/steve"))
    text = words(client.get("/setup/lago"))
    assert "Lago v1.51" in text
    assert "Lago has no billable metric ev_charging_kwh." in text
    assert "The API answers at http://" in words(client.get("/setup?check=steve"))


def test_what_is_wrong_is_said_with_what_to_do(operated, settings):
    settings.CONFIG = dataclasses.replace(
        settings.CONFIG, steve_api_key="wrong", lago_api_url="http://127.0.0.1:9"
    )
    client = operated(Role.OPERATOR)
    steve, lago = words(client.get("/setup/steve")), words(client.get("/setup/lago"))
    assert "STEVE_API_KEY" in steve
    assert "wrong" not in steve.replace("wrong password", "")
    assert "LAGO_API_URL" in lago


@pytest.mark.django_db
def test_settings_that_are_missing_are_findings_too(signed_in):
    assert "LAGO_API_KEY is not set" in words(signed_in().get("/setup/lago"))


@pytest.mark.django_db
def test_a_viewer_reads_the_checklist_and_asks_nobody(signed_in):
    client = signed_in(Role.VIEWER)
    page = client.get("/setup").content.decode()
    assert "/setup/steve" not in page
    assert client.get("/setup/steve").status_code == 403
    assert client.get("/setup?check=steve").status_code == 200


# -- going live ---------------------------------------------------------------------------------------


def test_the_preview_says_what_is_sent_what_never_and_what_is_still_held(world, operated):
    world.payer("TAG-ALICE", "alice")
    world.session("TAG-ALICE", start=72 * HOUR, stop=71 * HOUR, energy_wh=1_000)
    world.session("TAG-ALICE", "CP-2", start=72 * HOUR, stop=71 * HOUR, energy_wh=600_000)
    world.session("TAG-ALICE", energy_wh=2_000)
    world.session("TAG-7", energy_wh=4_000)
    world.sync()
    live_from = world.clock.now() - 24 * HOUR
    text = words(operated().get("/delivery/go-live", {"live_from": f"{live_from:%Y-%m-%dT%H:%M}"}))
    assert "alice sub-alice 1 2.000" in text
    assert "1 session that stopped before, 1.000 kWh" in text
    # What is implausible stays so, however old it is.
    assert "2 sessions, 604.000 kWh: not sent until their causes are resolved" in text
    assert "Go live and send 1 session, 2.000 kWh" in text
    assert not DeliveryControl.objects.exclude(live_from=None).exists()


def test_going_live_bills_from_the_chosen_instant_and_is_audited(world, operated):
    world.payer("TAG-ALICE", "alice")
    session = world.session("TAG-ALICE", energy_wh=2_000)
    world.sync()
    live_from = world.clock.now().replace(second=0, microsecond=0) - 24 * HOUR
    answer = operated().post("/delivery/go-live", {"live_from": f"{live_from:%Y-%m-%dT%H:%M}"}, follow=True)
    assert "Billing is live" in words(answer)
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    entry = AuditEntry.objects.get(action="delivery.go_live")
    assert (entry.actor, entry.after) == ("admin@example.org", {"live_from": live_from.isoformat()})


@pytest.mark.django_db
def test_going_live_a_second_time_changes_nothing(signed_in, now):
    DeliveryControl.objects.create(source=ledger.add_source(), live_from=now)
    answer = signed_in().post("/delivery/go-live", {"live_from": "2026-01-01T00:00"})
    assert answer.headers["Location"] == "/setup"
    assert DeliveryControl.objects.get().live_from == now


@pytest.mark.django_db
def test_an_order_that_somebody_else_gave_already_says_so(signed_in, now):
    DeliveryControl.objects.create(source=ledger.add_source(), live_from=now)
    client = signed_in()
    assert "Billing is live already." in words(client.get("/delivery/go-live", follow=True))
    assert "Delivery is not paused any more." in words(client.post("/delivery/resume", follow=True))
    DeliveryControl.objects.update(paused_at=now, paused_by="ada@example.org", pause_reason="a look")
    answer = client.post("/delivery/pause", {"reason": "mine"}, follow=True)
    assert "Delivery is paused already, by ada@example.org." in words(answer)
    assert DeliveryControl.objects.get().pause_reason == "a look"


@pytest.mark.django_db
def test_what_the_environment_decides_cannot_be_chosen_here(signed_in, configured):
    client = signed_in()
    assert client.post("/delivery/go-live", {"live_from": "2026-02-02T00:00"}).headers["Location"] == "/setup"
    assert "BILLING_START in the environment says so." in words(client.get("/setup"))


@pytest.mark.parametrize(
    "given", ["", "soon", "2026-13-01T00:00", "9999999-01-01", "0001-01-01", "9999-12-31T23:00"]
)
@pytest.mark.django_db
def test_an_instant_that_is_none_is_refused_with_what_to_enter(signed_in, given):
    for method in ("get", "post"):
        answer = getattr(signed_in(), method)("/delivery/go-live", {"live_from": given})
        assert answer.status_code == 400
        says = ("Enter a date and a time", "This field is required.", "A day between 1990 and 2200.")
        assert any(each in words(answer) for each in says)


@pytest.mark.django_db
def test_an_hour_that_a_clock_skips_is_refused(signed_in, settings):
    from zoneinfo import ZoneInfo

    from django.utils import timezone

    with timezone.override(ZoneInfo("Europe/Berlin")):
        answer = signed_in().get("/delivery/go-live", {"live_from": "2026-03-29T02:30"})
    assert answer.status_code == 400


# -- pausing ------------------------------------------------------------------------------------------


def resume_form(client):
    """What the page's form sends: the pause that was seen."""
    page = client.get("/delivery/resume").content.decode()
    return {
        name: html.unescape(value)
        for name, value in re.findall(
            r'<input type="hidden" name="(paused_at|reason)" value="([^"]*)">', page
        )
    }


def test_resuming_a_pause_that_was_replaced_meanwhile_is_refused(world, operated):
    admin = operated(Role.ADMIN)
    world.go_live()
    world.pause("a look at the mappings")
    seen = resume_form(admin)
    world.resume()
    world.pause("StEvE was restored")
    assert "Another cause came meanwhile: StEvE was restored" in words(
        admin.post("/delivery/resume", seen, follow=True)
    )
    assert control.read_status(world.config()).mode == "paused"
    assert "Delivery goes on" in words(admin.post("/delivery/resume", resume_form(admin), follow=True))


def test_an_operator_pauses_with_a_reason_and_an_admin_resumes(world, operated):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    operator = operated(Role.OPERATOR)
    assert operator.post("/delivery/pause", {"reason": " "}).status_code == 400
    answer = operator.post("/delivery/pause", {"reason": "Tariff is wrong"}, follow=True)
    assert re.search(r"Paused since .* by operator@example.org: ", words(answer))
    session = world.session("TAG-ALICE", energy_wh=2_000)
    world.sync()
    assert world.state_of(session) == ("queued", None)
    assert operator.post("/delivery/resume").status_code == 403
    admin = operated(Role.ADMIN)
    assert "1 session with 2.000 kWh is queued" in words(admin.get("/delivery/resume"))
    assert "Delivery goes on" in words(admin.post("/delivery/resume", resume_form(admin), follow=True))
    world.sync()
    assert world.state_of(session) == ("confirmed", None)
    assert list(AuditEntry.objects.filter(action__startswith="delivery.p").values_list("actor")) == [
        ("operator@example.org",)
    ]


@pytest.mark.django_db
def test_a_stop_of_its_own_says_why_and_warns(signed_in, now):
    DeliveryControl.objects.create(
        source=ledger.add_source(),
        live_from=now,
        paused_at=now,
        paused_by="delivery",
        pause_reason="LAGO_API_KEY belongs to another organisation.",
    )
    text = words(signed_in().get("/setup"))
    assert "by the product itself: LAGO_API_KEY belongs" in text
    assert "Paused by the product itself: LAGO_API_KEY belongs" in text
    text = words(signed_in().get("/delivery/resume"))
    assert "LAGO_API_KEY belongs to another organisation." in text
    assert "It stopped to protect your bills." in text
    assert "the product itself" in text


# -- across the top -----------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_banner_has_the_button_that_helps_for_those_who_may(signed_in, now):
    ledger.add_worker(now)
    DeliveryControl.objects.create(source=ledger.add_source(), live_from=now, paused_at=now)
    assert 'href="/delivery/resume"' in signed_in(Role.ADMIN).get("/").content.decode()
    assert 'href="/delivery/resume"' not in signed_in(Role.OPERATOR).get("/").content.decode()


@pytest.mark.django_db
def test_a_broken_contract_stands_across_the_top_until_it_is_mended(signed_in, configured, now):
    ledger.add_worker(now)
    alert = Alert.objects.create(
        source=ledger.add_source(),
        condition="contract_broken",
        says="12 sessions are held.",
        do="Put the charge back.",
        opened_at=now,
    )
    text = words(signed_in().get("/sync"))
    assert "Lago would not bill everything" in text
    assert "12 sessions are held. Put the charge back." in text
    Alert.objects.filter(pk=alert.pk).update(resolved_at=now)
    assert "Lago would not bill everything" not in words(signed_in().get("/sync"))
