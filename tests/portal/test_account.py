"""One's own account: name, where one is signed in, the second step of signing in."""

import html
import re

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP, format_hotp_value, hotp_value
from allauth.usersessions.models import UserSession
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from ocpp_billing.accounts.first_admin import create_admin
from ocpp_billing.accounts.models import AuditEntry, Role, User
from ocpp_billing.portal.browsers import describe_browser
from tests.portal.conftest import BACKEND, PASSWORD, add_person

pytestmark = pytest.mark.django_db

SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"


def text(answer):
    return html.unescape(answer.content.decode())


def browser_of(person, name="Firefox/140.0 Linux"):
    client = Client(headers={"user-agent": name})
    client.force_login(person, BACKEND)
    client.get("/account")
    return client


def code(secret=SECRET, step=0):
    import time

    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + step))


@pytest.fixture
def protected():
    """Somebody whose sign-in takes a code."""
    person = add_person(Role.OPERATOR)
    TOTP.activate(person, SECRET)
    RecoveryCodes.activate(person)
    return person


def begin_sign_in(client):
    return client.post("/accounts/login/", {"login": "operator@example.org", "password": PASSWORD})


# -- name -----------------------------------------------------------------------------------------------


def test_the_name_is_changed_and_the_audit_knows_both(signed_in):
    client = signed_in(Role.VIEWER)
    assert "Your name is changed." in text(client.post("/account", {"name": "Vera"}, follow=True))
    entry = AuditEntry.objects.get()
    assert (entry.before["name"], entry.after["name"]) == ("The viewer", "Vera")
    assert 'id="id_name-errors"' in text(client.post("/account", {"name": " "}))


def test_nobody_changes_their_role_that_way(signed_in):
    signed_in(Role.VIEWER).post("/account", {"name": "Vera", "role": "admin"})
    assert User.objects.get().role == Role.VIEWER


# -- sessions -------------------------------------------------------------------------------------------


def test_another_browser_is_signed_out(signed_in):
    here = signed_in(Role.VIEWER)
    there = browser_of(User.objects.get())
    here.get("/account")
    page = text(here.get("/account"))
    assert "Firefox on Linux" in page
    assert page.count("this browser") == 1
    (number,) = re.findall(r"/account/sessions/(\d+)/end", page)
    assert "That browser is signed out." in text(here.post(f"/account/sessions/{number}/end", follow=True))
    assert there.get("/").status_code == 302
    assert here.get("/").status_code == 200
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.before["browser"]) == ("account.session_ended", "Firefox/140.0 Linux")
    assert "had ended already" in text(here.post(f"/account/sessions/{number}/end", follow=True))


def test_all_other_browsers_are_signed_out(signed_in):
    here = signed_in(Role.VIEWER)
    others = [browser_of(User.objects.get()) for _ in range(2)]
    assert "2 other browsers are signed out." in text(here.post("/account/sessions/end", follow=True))
    assert [other.get("/").status_code for other in others] == [302, 302]
    assert here.get("/").status_code == 200


def test_nobody_ends_somebody_elses_session_or_this_one_by_accident(signed_in):
    here = signed_in(Role.VIEWER)
    here.get("/account")
    mine = UserSession.objects.get()
    there = browser_of(add_person(Role.OPERATOR))
    theirs = UserSession.objects.exclude(pk=mine.pk).get()
    assert "ended already" in text(here.post(f"/account/sessions/{theirs.pk}/end", follow=True))
    assert there.get("/").status_code == 200
    assert "That is this browser" in text(here.post(f"/account/sessions/{mine.pk}/end", follow=True))
    assert here.get("/").status_code == 200


def test_a_session_that_ran_out_is_not_listed(signed_in):
    from datetime import timedelta

    from django.contrib.sessions.models import Session
    from django.utils import timezone

    here = signed_in(Role.VIEWER)
    browser_of(User.objects.get())
    here.get("/account")
    other = UserSession.objects.get(user_agent="Firefox/140.0 Linux")
    Session.objects.filter(session_key=other.session_key).update(
        expire_date=timezone.now() - timedelta(seconds=1)
    )
    assert "Firefox" not in text(here.get("/account"))


def test_the_queries_do_not_grow_with_the_sessions(signed_in):
    here = signed_in(Role.VIEWER)
    here.get("/account")
    with CaptureQueriesContext(connection) as few:
        here.get("/account")
    for _ in range(20):
        browser_of(User.objects.get())
    with CaptureQueriesContext(connection) as many:
        here.get("/account")
    assert len(many) == len(few)


@pytest.mark.parametrize(
    ("user_agent", "words"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537 Chrome/140 Safari/537 Edg/140", "Edge on Windows"),
        ("Mozilla/5.0 (Linux; Android 16) AppleWebKit/537 Chrome/140 Mobile Safari/537", "Chrome on Android"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 19 like Mac OS X) Version/19 Safari/604", "Safari on iPhone"),
        ("curl/8.0", "curl"),
        ("", "Unknown browser"),
    ],
)
def test_a_browser_is_called_as_its_person_calls_it(user_agent, words):
    assert describe_browser(user_agent) == words


# -- the second step ------------------------------------------------------------------------------------


def test_a_password_alone_is_not_enough(client, protected):
    assert begin_sign_in(client).headers["Location"] == "/accounts/2fa/authenticate/"
    assert client.get("/").status_code == 302
    assert not AuditEntry.objects.exists()
    wrong = client.post("/accounts/2fa/authenticate/", {"code": "000000"})
    assert "The code is not correct" in text(wrong)
    right = client.post("/accounts/2fa/authenticate/", {"code": code()})
    assert right.headers["Location"] == "/"
    assert client.get("/").status_code == 200
    assert AuditEntry.objects.get().action == "account.signed_in"


def test_a_code_is_good_for_one_sign_in_even_when_the_next_one_is_due(client, protected):
    used = code(step=-1)
    begin_sign_in(client)
    assert client.post("/accounts/2fa/authenticate/", {"code": used}).status_code == 302
    from django.core.cache import cache

    # As after 30 s, when allauth has forgotten it, and it is still within the tolerance.
    cache.delete(f"allauth.mfa.totp.used?user={protected.pk}&code={used}")
    other = Client()
    begin_sign_in(other)
    assert "was used already" in text(other.post("/accounts/2fa/authenticate/", {"code": used}))


def test_guessing_codes_is_stopped(client, protected):
    begin_sign_in(client)
    for _ in range(5):
        client.post("/accounts/2fa/authenticate/", {"code": "000000"})
    assert "Too many failed login attempts" in text(
        client.post("/accounts/2fa/authenticate/", {"code": code()})
    )
    assert client.get("/").status_code == 302


def test_a_recovery_code_replaces_the_phone_once(client, protected, mailbox):
    spare = RecoveryCodes.activate(protected).get_unused_codes()[0]
    begin_sign_in(client)
    assert client.post("/accounts/2fa/authenticate/", {"code": spare}).status_code == 302
    assert client.get("/").status_code == 200
    assert "9 are left" in text(client.get("/account"))
    assert AuditEntry.objects.filter(action="account.recovery_code_used").count() == 1
    assert "A recovery code was used" in mailbox.letters[0]["Subject"]
    other = Client()
    begin_sign_in(other)
    assert other.post("/accounts/2fa/authenticate/", {"code": spare}).status_code == 200


def test_switching_it_off_wants_proof_and_is_audited_and_told(protected, mailbox):
    client = browser_of(protected)
    wanted = client.get("/accounts/2fa/app/remove/")
    assert wanted.headers["Location"].startswith("/accounts/reauthenticate/")
    assert "Use a code of your app instead" in text(client.get(wanted.headers["Location"]))
    client.post("/accounts/reauthenticate/", {"password": PASSWORD, "next": "/accounts/2fa/app/remove/"})
    assert client.post("/accounts/2fa/app/remove/", follow=True).redirect_chain[-1][0] == "/account"
    assert not Authenticator.objects.exists()
    assert AuditEntry.objects.get().action == "account.two_factor_off"
    assert "Two-factor sign-in is off" in mailbox.letters[0]["Subject"]


def test_the_command_line_helps_an_admin_who_lost_everything():
    admin = add_person(Role.ADMIN)
    TOTP.activate(admin, SECRET)
    create_admin(admin.email, "not looked at", "A", remove_two_factor=True, actor="command line (root)")
    assert not Authenticator.objects.exists()
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor) == ("user.two_factor_removed", "command line (root)")
    admin.refresh_from_db()
    assert admin.check_password(PASSWORD)


def test_a_changed_password_is_told_to_its_person(signed_in, mailbox):
    client = signed_in(Role.VIEWER)
    new = "a completely new password"
    client.post("/accounts/password/change/", {"oldpassword": PASSWORD, "password1": new, "password2": new})
    (letter,) = mailbox.letters
    assert letter["To"] == "viewer@example.org"
    assert "from 127.0.0.1" in letter.get_content()
    assert "tell an admin at once" in letter.get_content()
