"""The tokens page: made once, shown once, revoked for ever."""

import html
import re
from datetime import timedelta

import pytest

from ocpp_billing.accounts.models import ApiToken, AuditEntry, Role, User
from ocpp_billing.accounts.tokens import authenticate_token, issue_token
from tests.portal.conftest import PASSWORD, add_person

pytestmark = pytest.mark.django_db


def text(answer):
    return html.unescape(answer.content.decode())


def make(client, **given):
    return client.post("/settings/tokens/new", {"name": "export", "role": "viewer", "lifetime": "90"} | given)


def test_a_token_is_shown_once_and_works(signed_in, now):
    client = signed_in(Role.OPERATOR)
    answer = make(client, role="operator")
    (token,) = set(re.findall(r"obs_\w{49}", text(answer)))
    found = authenticate_token(token)
    assert (found.name, found.role, found.user.role) == ("export", "operator", "operator")
    assert found.expires_at == now + timedelta(days=90)
    assert "no-store" in answer.headers["Cache-Control"]
    page = text(client.get("/settings/tokens"))
    assert token not in page
    assert f"obs_…{token[-4:]}" in page
    assert AuditEntry.objects.get(action="token.created").actor == "operator@example.org"


def test_one_that_never_expires_has_to_be_asked_for(signed_in):
    client = signed_in(Role.VIEWER)
    make(client, lifetime="never")
    assert ApiToken.objects.get().expires_at is None
    assert 'value="90" selected' in text(client.get("/settings/tokens/new"))


def test_a_session_alone_makes_no_token_and_a_password_makes_the_one_that_was_asked_for(signed_in, mailbox):
    client = signed_in(Role.OPERATOR, confirmed=False)
    assert "/accounts/reauthenticate/" in client.get("/settings/tokens/new").headers["Location"]
    asked = make(client, role="operator").headers["Location"]
    assert asked.startswith("/accounts/reauthenticate/?next=")
    assert "wants your password once more" in text(client.get(asked))
    assert "The password is not correct" in text(client.post(asked, {"password": "not it"}))
    assert not ApiToken.objects.exists()

    make(client, role="operator")
    given = client.post(asked, {"password": PASSWORD, "next": "/settings/tokens/new"})
    (token,) = set(re.findall(r"obs_\w{49}", text(given)))
    assert authenticate_token(token).role == "operator"
    assert "no-store" in given.headers["Cache-Control"]
    (letter,) = mailbox.letters
    assert (letter["To"], letter["Subject"]) == (
        "operator@example.org",
        "OCPP Billing Sync: An API token was made",
    )
    assert "“export”" in letter.get_content()
    assert token not in letter.get_content()


def test_a_token_without_an_expiry_is_not_made_by_leaving_it_out(signed_in):
    answer = signed_in(Role.VIEWER).post("/settings/tokens/new", {"name": "export", "role": "viewer"})
    assert 'id="id_lifetime-errors"' in text(answer)
    assert not ApiToken.objects.exists()


def test_nobody_is_offered_or_given_more_than_their_role(signed_in):
    client = signed_in(Role.OPERATOR)
    form = text(client.get("/settings/tokens/new"))
    assert 'value="operator"' in form
    assert 'value="admin"' not in form
    assert "not one of the available choices" in text(make(client, role="admin"))
    assert not ApiToken.objects.exists()


def test_a_nonsensical_name_is_refused_beside_its_field(signed_in):
    answer = make(signed_in(Role.VIEWER), name="\u202e")
    assert 'id="id_name-errors"' in text(answer)


def test_revoking_is_confirmed_first(signed_in):
    client = signed_in(Role.VIEWER)
    token, secret = issue_token(User.objects.get(), name="old", role=Role.VIEWER, expires_at=None)
    page = text(client.get(f"/settings/tokens/{token.pk}/revoke"))
    assert "Revoke the token “old”?" in page
    assert authenticate_token(secret) is not None
    assert "is revoked" in text(client.post(f"/settings/tokens/{token.pk}/revoke", follow=True))
    assert authenticate_token(secret) is None


def test_others_tokens_are_for_admins_only(signed_in):
    token, secret = issue_token(add_person(Role.OPERATOR), name="ops", role=Role.VIEWER, expires_at=None)
    viewer, admin = signed_in(Role.VIEWER), signed_in(Role.ADMIN)
    assert "ops" not in text(viewer.get("/settings/tokens?of=everybody"))
    assert viewer.post(f"/settings/tokens/{token.pk}/revoke").status_code == 404
    assert authenticate_token(secret) is not None

    assert "ops" not in text(admin.get("/settings/tokens"))
    assert "ops" in text(admin.get("/settings/tokens?of=everybody"))
    answer = admin.post(f"/settings/tokens/{token.pk}/revoke")
    assert answer.headers["Location"] == "/settings/tokens?of=everybody"
    assert authenticate_token(secret) is None


def test_what_a_token_is_worth_is_said(signed_in, now):
    client = signed_in(Role.ADMIN)
    person = User.objects.get()
    issue_token(person, name="good", role=Role.VIEWER, expires_at=None)
    token, _ = issue_token(person, name="old", role=Role.VIEWER, expires_at=now + timedelta(days=1))
    ApiToken.objects.filter(pk=token.pk).update(expires_at=now)
    closed = add_person(Role.VIEWER, is_active=False)
    issue_token(closed, name="closed", role=Role.VIEWER, expires_at=None)
    page = text(client.get("/settings/tokens?of=everybody"))
    assert [word in page for word in (">expired<", ">account deactivated<", ">revoked<")] == [
        True,
        True,
        False,
    ]


def test_many_tokens_come_in_pages(signed_in):
    client = signed_in(Role.VIEWER)
    person = User.objects.get()
    ApiToken.objects.bulk_create(
        ApiToken(user=person, name=f"token {n}", role="viewer", digest=bytes([n]) * 32, hint="abcd")
        for n in range(60)
    )
    first = text(client.get("/settings/tokens"))
    (following,) = re.findall(r'href="(\?cursor=[^"]+)" rel="next"', first)
    second = text(client.get(f"/settings/tokens{following}"))
    assert ("token 59" in first, "token 9<" in first, "token 9<" in second) == (True, False, True)


def test_an_empty_list_says_what_tokens_are_for(signed_in):
    assert "You have no token" in text(signed_in(Role.VIEWER).get("/settings/tokens"))
