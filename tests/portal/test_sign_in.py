"""Signing in and out, and the pages around it."""

import os
import subprocess
import sys

import pytest
from django.test import Client

from ocpp_billing.accounts.models import AuditEntry, Role, User
from tests.portal.conftest import PASSWORD, add_person
from tests.portal.test_password_reset import choose

pytestmark = pytest.mark.django_db


def sign_in(client, email="viewer@example.org", password=PASSWORD, **fields):
    return client.post("/accounts/login/", {"login": email, "password": password, **fields})


def test_the_right_password_leads_to_the_dashboard(client):
    add_person(Role.VIEWER)
    assert sign_in(client).headers["Location"] == "/"
    assert client.get("/").status_code == 200


def test_after_sign_in_people_land_where_they_wanted_to_go(client):
    add_person(Role.VIEWER)
    wanted = client.get("/accounts/password/change/").headers["Location"]
    assert wanted == "/accounts/login/?next=/accounts/password/change/"
    assert b'value="/accounts/password/change/"' in client.get(wanted).content
    assert (
        sign_in(client, next="/accounts/password/change/").headers["Location"] == "/accounts/password/change/"
    )


def test_nobody_is_sent_to_another_site_after_sign_in(client):
    add_person(Role.VIEWER)
    assert sign_in(client, next="https://evil.example/").headers["Location"] == "/"


def test_the_case_of_the_address_does_not_matter(client):
    add_person(Role.VIEWER)
    assert sign_in(client, email="VIEWER@Example.org").headers["Location"] == "/"


def test_a_wrong_password_and_an_unknown_address_get_the_same_answer(client):
    add_person(Role.VIEWER)
    wrong = sign_in(client, password="not the password")
    unknown = sign_in(client, email="nobody@example.org")

    def said(answer):
        return answer.content.decode().partition('role="alert"')[2].partition("</div>")[0]

    assert wrong.status_code == unknown.status_code == 200
    assert "is not correct" in said(wrong)
    assert said(wrong) == said(unknown)


def test_guessing_is_stopped_after_five_attempts_even_with_the_right_password(client):
    add_person(Role.VIEWER)
    for _ in range(5):
        sign_in(client, password="not the password")
    answer = sign_in(client)
    assert answer.status_code == 200
    assert "Too many failed login attempts" in answer.content.decode()


def test_what_strangers_type_keeps_nobody_from_going_on_and_a_new_password_lets_in_at_once(
    signed_in, mailbox
):
    here = signed_in(Role.VIEWER, confirmed=False)
    for number in range(6):
        sign_in(Client(REMOTE_ADDR=f"192.0.2.{number}"), password="not the password")
    shut_out = sign_in(Client(REMOTE_ADDR="192.0.2.99"))
    assert "Too many failed login attempts" in shut_out.content.decode()

    assert here.get("/").status_code == 200
    assert here.post("/accounts/reauthenticate/", {"password": PASSWORD}).status_code == 302
    Client().post("/accounts/password/reset/", {"email": "viewer@example.org"})
    choose(mailbox.links()[0], password="a completely new password")
    assert sign_in(Client(), password="a completely new password").status_code == 302


def test_wrong_passwords_of_somebody_signed_in_are_counted_too(signed_in):
    here = signed_in(Role.VIEWER, confirmed=False)
    for _ in range(5):
        here.post("/accounts/reauthenticate/", {"password": "not the password"})
    answer = here.post("/accounts/reauthenticate/", {"password": PASSWORD})
    assert "Too many failed login attempts" in answer.content.decode()


def test_the_limit_counts_over_all_web_processes():
    from django.core.cache import cache, caches
    from django.db import connection

    cache.set("counted", 1)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM web_cache WHERE cache_key LIKE '%counted'")
        assert cursor.fetchone() == (1,)
    assert type(caches["default"]).__name__ == "DatabaseCache"


def test_a_flood_of_attempts_gets_the_page_that_says_so(client):
    for number in range(10):
        sign_in(client, email=f"nobody{number}@example.org")
    for _ in range(21):
        answer = sign_in(client, email="nobody@example.org")
    assert answer.status_code == 429
    assert "Too many attempts" in answer.content.decode()


def test_a_deactivated_person_is_told_so_and_not_signed_in(client):
    add_person(Role.VIEWER, is_active=False)
    assert sign_in(client).headers["Location"] == "/accounts/inactive/"
    assert "deactivated" in client.get("/accounts/inactive/").content.decode()
    assert client.get("/").status_code == 302


def test_sign_in_is_in_the_audit_log(client):
    person = add_person(Role.VIEWER)
    sign_in(client)
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.user, entry.address) == ("account.signed_in", person, "127.0.0.1")


def test_sign_up_is_closed_and_says_whom_to_ask(client):
    shown = client.get("/accounts/signup/")
    assert shown.status_code == 200
    assert "Sign-up is closed" in shown.content.decode()
    assert "Ask the person who runs it" in shown.content.decode()

    client.post(
        "/accounts/signup/", {"email": "new@example.org", "password1": PASSWORD, "password2": PASSWORD}
    )
    assert not User.objects.exists()


def test_sign_out_takes_a_post(signed_in):
    client = signed_in()
    assert "Sign out?" in client.get("/accounts/logout/").content.decode()
    assert client.get("/").status_code == 200
    client.post("/accounts/logout/")
    assert client.get("/").status_code == 302


def test_the_password_is_changed_and_other_sessions_end(signed_in):
    here, elsewhere = signed_in(), signed_in()
    new = "a completely new password"
    here.post("/accounts/password/change/", {"oldpassword": PASSWORD, "password1": new, "password2": new})

    assert User.objects.get().check_password(new)
    assert here.get("/").status_code == 200
    assert elsewhere.get("/").status_code == 302
    assert AuditEntry.objects.filter(action="account.password_changed").count() == 1


def test_a_weak_new_password_is_refused_beside_its_field(signed_in):
    answer = signed_in().post(
        "/accounts/password/change/", {"oldpassword": PASSWORD, "password1": "short", "password2": "short"}
    )
    assert 'aria-describedby="id_password1-errors"' in answer.content.decode()
    assert "at least 12 characters" in answer.content.decode()


def test_confirming_that_it_is_you_wants_the_password(signed_in):
    client = signed_in()
    assert "Confirm that it is you" in client.get("/accounts/reauthenticate/").content.decode()
    assert client.post("/accounts/reauthenticate/", {"password": "wrong"}).status_code == 200
    assert client.post("/accounts/reauthenticate/", {"password": PASSWORD}).status_code == 302


@pytest.mark.parametrize(
    "path",
    [
        *("email/", "confirm-email/", "confirm-email/key/", "password/set/", "sessions/", "3rdparty/"),
        *("login/code/confirm/", "password/reset/confirm/", "password/reset/key/done/"),
        *("2fa/webauthn/", "2fa/trust/"),
    ],
)
def test_pages_of_allauth_that_are_not_ours_do_not_exist(signed_in, path):
    assert signed_in().get(f"/accounts/{path}").status_code == 404


def test_the_key_of_the_session_changes_at_sign_in(client):
    """Session fixation: who planted a key in a browser before does not share the session after."""
    add_person(Role.VIEWER)
    client.get("/accounts/password/reset/key/x-y/")
    session = client.session
    session["planted"] = True
    session.save()
    planted = session.session_key
    client.cookies["sessionid"] = planted
    sign_in(client)

    assert client.cookies["sessionid"].value != planted
    client.cookies["sessionid"] = planted
    assert client.get("/").status_code == 302


def test_a_flood_does_not_push_the_counters_out_of_the_cache(settings):
    from django.core.cache import cache

    assert cache._max_entries == settings.CACHES["default"]["OPTIONS"]["MAX_ENTRIES"] == 20_000


@pytest.mark.parametrize(
    ("address", "secure"), [("https://billing.example.org", True), ("http://localhost:8000", False)]
)
def test_cookies_are_secure_when_the_address_is(address, secure):
    program = (
        "from ocpp_billing import settings as s;"
        "print(s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE, s.SECURE_HSTS_SECONDS > 0)"
    )
    environment = os.environ | {"AUTH_URL": address, "OCPP_BILLING_ENV_FILE": ""}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [str(secure)] * 3


def test_attempts_are_counted_over_every_name_of_the_host(client, settings):
    """allauth counts for each host name by itself, and several are allowed: five attempts, not twenty."""
    settings.ALLOWED_HOSTS = ["*"]
    add_person(Role.VIEWER)
    for number in range(5):
        client.post(
            "/accounts/login/",
            {"login": "viewer@example.org", "password": "not the password"},
            headers={"host": f"host{number}.example"},
        )
    assert "Too many failed login attempts" in sign_in(client).content.decode()
