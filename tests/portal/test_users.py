"""The users page and what an admin does to a person: each act is confirmed, done and audited."""

import html
from datetime import timedelta

import pytest
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.db import connection
from django.db.models import Q
from django.test import Client
from django.test.utils import CaptureQueriesContext

from ocpp_billing import clock
from ocpp_billing.accounts import invitations
from ocpp_billing.accounts.models import ApiToken, AuditEntry, Role, User
from ocpp_billing.accounts.tokens import authenticate_token, issue_token
from tests.portal.conftest import BACKEND, PASSWORD, add_person

pytestmark = pytest.mark.django_db


def text(answer):
    return html.unescape(answer.content.decode())


@pytest.fixture
def admin(signed_in):
    return signed_in(Role.ADMIN)


@pytest.fixture
def vera():
    return add_person(Role.VIEWER)


def browser_of(person):
    client = Client(headers={"user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0"})
    client.force_login(person, BACKEND)
    client.get("/account")
    return client


def audit(action):
    return AuditEntry.objects.get(action=action)


def test_the_list_shows_who_may_sign_in(admin, vera):
    add_person(Role.OPERATOR, is_active=False)
    browser_of(vera)
    issue_token(vera, name="export", role=Role.VIEWER, expires_at=None)
    page = text(admin.get("/settings/users"))
    assert "2 people can sign in" in page
    assert "viewer@example.org" in page
    assert "deactivated" in page
    assert "has never" not in page


def test_the_queries_do_not_grow_with_the_people(admin):
    with CaptureQueriesContext(connection) as few:
        admin.get("/settings/users")
    by = User.objects.get(role=Role.ADMIN)
    for n in range(20):
        browser_of(add_person(Role.VIEWER, f"viewer{n}@example.org"))
        invitations.invite(email=f"i{n}@example.org", name="I", role=Role.VIEWER, by=by)
    with CaptureQueriesContext(connection) as many:
        assert "viewer19@example.org" in text(admin.get("/settings/users"))
    assert len(many) == len(few)


def test_a_role_is_changed_and_the_audit_says_from_what_to_what(admin, vera):
    answer = admin.post(f"/settings/users/{vera.pk}", {"name": "Vera", "role": "operator"}, follow=True)
    assert "Vera is changed." in text(answer)
    entry = audit("user.changed")
    assert (entry.actor, entry.target, entry.address) == (
        "admin@example.org",
        "user viewer@example.org",
        "127.0.0.1",
    )
    assert (entry.before["role"], entry.after["role"]) == ("viewer", "operator")
    assert (entry.before["name"], entry.after["name"]) == ("The viewer", "Vera")


def test_a_page_left_open_sets_no_role_back(admin, vera):
    page = admin.get(f"/settings/users/{vera.pk}").content.decode()
    assert 'name="initial-role" value="viewer"' in page
    User.objects.filter(pk=vera.pk).update(role=Role.OPERATOR)
    shown = {"initial-name": "The viewer", "initial-role": "viewer"}
    admin.post(f"/settings/users/{vera.pk}", shown | {"name": "Vera", "role": "viewer"})
    vera.refresh_from_db()
    assert (vera.name, vera.role) == ("Vera", Role.OPERATOR)


def test_the_last_admin_stays_one(admin):
    me = User.objects.get()
    answer = admin.post(f"/settings/users/{me.pk}", {"name": "Me", "role": "viewer"})
    assert "This is the last admin. Make somebody else an admin first." in text(answer)
    answer = admin.post(f"/settings/users/{me.pk}/deactivate", follow=True)
    assert "This is the last admin" in text(answer)
    me.refresh_from_db()
    assert me.is_admin
    assert not AuditEntry.objects.exists()


def test_an_admin_who_gives_the_role_away_lands_where_they_still_may_be(admin):
    add_person(Role.ADMIN, "other@example.org")
    me = User.objects.get(email="admin@example.org")
    answer = admin.post(f"/settings/users/{me.pk}", {"name": "Me", "role": "viewer"})
    assert answer.headers["Location"] == "/account"
    assert admin.get("/settings/users").status_code == 403


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("/settings/users/invite", {"email": "eve@example.org", "name": "Eve", "role": "admin"}),
        ("/settings/users/{vera}", {"name": "Vera", "role": "admin"}),
        ("/settings/users/{vera}/new-password", {}),
        ("/settings/users/{vera}/remove-two-factor", {}),
        ("/settings/users/{closed}/activate", {}),
        ("/settings/invitations/{invited}/renew", {}),
    ],
)
def test_a_session_alone_lets_nobody_in(signed_in, vera, path, given):
    closed = add_person(Role.OPERATOR, is_active=False)
    Authenticator.objects.create(user=vera, type=Authenticator.Type.TOTP, data={})
    client = signed_in(Role.ADMIN, confirmed=False)
    admin = User.objects.get(role=Role.ADMIN)
    invited = invitations.invite(email="ida@example.org", name="Ida", role=Role.ADMIN, by=admin)
    path = path.format(vera=vera.pk, closed=closed.pk, invited=invited.pk)
    before = AuditEntry.objects.count()

    asked = client.post(path, given).headers["Location"]

    assert asked.startswith("/accounts/reauthenticate/?next=")
    assert AuditEntry.objects.count() == before
    assert Authenticator.objects.exists()
    assert not User.objects.exclude(pk=admin.pk).filter(Q(role=Role.ADMIN) | Q(pk=closed.pk, is_active=True))
    # With the password, it is done as it was asked for, without filling the form again.
    client.post(asked, {"password": PASSWORD, "next": path})
    assert AuditEntry.objects.count() == before + 1


def test_what_shuts_somebody_out_needs_no_password(signed_in, vera):
    client = signed_in(Role.ADMIN, confirmed=False)
    client.post(f"/settings/users/{vera.pk}/deactivate")
    client.post(f"/settings/users/{vera.pk}", {"name": "Vera", "role": "viewer"})
    vera.refresh_from_db()
    assert (vera.is_active, vera.name) == (False, "Vera")


def test_the_link_of_an_invitation_is_shown_to_whoever_proved_to_be_the_admin(signed_in):
    client = signed_in(Role.ADMIN, confirmed=False)
    invited = invitations.invite(
        email="ida@example.org", name="Ida", role=Role.ADMIN, by=User.objects.get(role=Role.ADMIN)
    )
    link = invitations.link_of(invited)
    page = text(client.get("/settings/users"))
    assert link not in page
    assert "/accounts/reauthenticate/?next=/settings/users" in page
    client.post("/accounts/reauthenticate/", {"password": PASSWORD, "next": "/settings/users"})
    assert link in text(client.get("/settings/users"))


def test_a_removed_second_factor_is_told_to_its_person(admin, vera, mailbox):
    Authenticator.objects.create(user=vera, type=Authenticator.Type.TOTP, data={})
    admin.post(f"/settings/users/{vera.pk}/remove-two-factor")
    (letter,) = mailbox.letters
    assert (letter["To"], letter["Subject"]) == (
        "viewer@example.org",
        "OCPP Billing Sync: Two-factor sign-in is off",
    )
    assert "admin@example.org removed it" in letter.get_content()


@pytest.mark.parametrize(
    ("act", "says"),
    [
        ("new-password", "gets a link to choose a new password"),
        ("end-sessions", "Every browser is signed out at once."),
        ("revoke-tokens", "This cannot be undone."),
        ("remove-two-factor", "Make sure that it is really The viewer who asks."),
        ("deactivate", "cannot sign in any more"),
        ("activate", "can sign in again"),
    ],
)
def test_before_an_act_the_page_says_what_it_will_do_and_nothing_is_done(admin, vera, act, says):
    page = text(admin.get(f"/settings/users/{vera.pk}/{act}"))
    assert says in page
    assert not AuditEntry.objects.exists()
    assert admin.get(f"/settings/users/{vera.pk}/delete").status_code == 404


def test_sign_out_everywhere(admin, vera):
    first, second = browser_of(vera), browser_of(vera)
    page = text(admin.get(f"/settings/users/{vera.pk}"))
    assert "Signed in on 2 browsers: Firefox on Linux" in page
    answer = admin.post(f"/settings/users/{vera.pk}/end-sessions", follow=True)
    assert "The viewer is signed out everywhere; 2 sessions ended." in text(answer)
    assert [one.get("/account").status_code for one in (first, second)] == [302, 302]
    assert audit("user.sessions_ended").before == {"sessions": 2}
    assert admin.get("/settings/users").status_code == 200


def test_a_token_counts_as_long_as_it_works(admin, vera):
    for name in ("lasts", "expires"):
        issue_token(vera, name=name, role=Role.VIEWER, expires_at=clock.now() + timedelta(days=1))
    page = f"/settings/users/{vera.pk}"
    assert "2 tokens work." in text(admin.get(page))
    ApiToken.objects.filter(name="expires").update(expires_at=clock.now() - timedelta(seconds=1))
    assert "1 token works." in text(admin.get(page))


def test_revoke_all_tokens(admin, vera):
    _, kept = issue_token(User.objects.get(role=Role.ADMIN), name="mine", role=Role.VIEWER, expires_at=None)
    made = [issue_token(vera, name=f"t{n}", role=Role.VIEWER, expires_at=None)[1] for n in range(2)]
    answer = admin.post(f"/settings/users/{vera.pk}/revoke-tokens", follow=True)
    assert "2 tokens of The viewer are revoked." in text(answer)
    assert [authenticate_token(one) for one in made] == [None, None]
    assert authenticate_token(kept) is not None
    assert AuditEntry.objects.filter(action="token.revoked", actor="admin@example.org").count() == 2


def test_remove_two_factor(admin, vera):
    for kind in (Authenticator.Type.TOTP, Authenticator.Type.RECOVERY_CODES):
        Authenticator.objects.create(user=vera, type=kind, data={"secret": "A", "seed": "a", "used_mask": 0})
    assert "On: signing in takes a code" in text(admin.get(f"/settings/users/{vera.pk}"))
    admin.post(f"/settings/users/{vera.pk}/remove-two-factor")
    assert not Authenticator.objects.exists()
    assert audit("user.two_factor_removed").target == "user viewer@example.org"
    # A second time changes nothing and is no act.
    admin.post(f"/settings/users/{vera.pk}/remove-two-factor")
    assert AuditEntry.objects.count() == 1


def test_deactivate_and_activate(admin, vera):
    browser = browser_of(vera)
    _, token = issue_token(vera, name="t", role=Role.VIEWER, expires_at=None)
    admin.post(f"/settings/users/{vera.pk}/deactivate")
    assert browser.get("/account").status_code == 302
    assert not UserSession.objects.filter(user=vera).exists()
    assert authenticate_token(token) is None
    assert "Activate the account first" in text(
        admin.post(f"/settings/users/{vera.pk}/new-password", follow=True)
    )
    answer = admin.post(f"/settings/users/{vera.pk}/activate", follow=True)
    assert "The viewer can sign in again." in text(answer)
    assert browser.get("/account").status_code == 302
    assert authenticate_token(token) is not None
    entries = AuditEntry.objects.filter(action="user.changed").order_by("pk")
    assert [(one.before["active"], one.after["active"]) for one in entries] == [(True, False), (False, True)]
