"""The life of a token: made once, shown once, used, refused."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from django.db import connection

from ocpp_billing import clock
from ocpp_billing.accounts.models import ApiToken, AuditEntry, Role, User
from ocpp_billing.accounts.tokens import (
    PREFIX,
    TokenError,
    authenticate_token,
    generate_token,
    is_well_formed,
    issue_token,
)
from ocpp_billing.api.auth import REFUSALS
from tests.api.conftest import Api, person
from tests.caches import clear_caches

pytestmark = pytest.mark.django_db


@pytest.fixture
def at():
    """A function that sets the time, for this test."""
    yield lambda instant: clock.install_clock(lambda: instant)
    clock.install_clock(None)


def bearer(client, text):
    return Api(client, {"Authorization": f"Bearer {text}"})


def test_a_token_says_what_it_is_and_proves_that_it_was_typed_right():
    text = generate_token()

    assert text.startswith(PREFIX)
    assert len(text) == 53
    assert is_well_formed(text)
    for place in range(len(PREFIX), len(text)):
        other = "0" if text[place] != "0" else "1"
        assert not is_well_formed(text[:place] + other + text[place + 1 :])


@pytest.mark.parametrize(
    "text",
    ["", "obs_", "obs_é" + "0" * 48, generate_token()[4:], generate_token() + "\n"],
    ids=["nothing", "only the prefix", "not ASCII", "no prefix", "a line's end"],
)
def test_what_is_no_token_of_ours_is_refused_without_asking_the_database(text, django_assert_num_queries):
    with django_assert_num_queries(0):
        assert authenticate_token(text) is None


def test_tokens_are_never_the_same():
    assert len({generate_token() for _ in range(1000)}) == 1000


def test_only_the_hash_of_a_token_is_kept():
    token, text = issue_token(person(Role.VIEWER), name="Grafana", role=Role.VIEWER, expires_at=None)

    row = ApiToken.objects.values().get(pk=token.pk)
    assert bytes(row["digest"]) == hashlib.sha256(text.encode()).digest()
    assert text not in str(row)
    assert text not in str(list(AuditEntry.objects.values()))


def test_somebody_signed_in_makes_a_token_uses_it_and_revokes_it(as_session, client):
    mine = as_session(Role.OPERATOR)

    status, made = mine("POST", "/tokens", {"name": "Grafana", "role": "viewer"})
    assert status == 201
    assert made["hint"] == made["token"][-4:]
    assert made["last_used_at"] is None

    assert bearer(client, made["token"])("GET", "/balance")[0] == 200
    (listed,) = mine("GET", "/tokens")[1]["items"]
    assert listed["last_used_at"] is not None
    assert "token" not in listed

    status, revoked = mine("DELETE", f"/tokens/{made['id']}")
    assert (status, revoked["revoked_at"] is not None) == (200, True)
    assert bearer(client, made["token"])("GET", "/balance")[0] == 401
    assert [entry.action for entry in AuditEntry.objects.order_by("id")] == ["token.created", "token.revoked"]


@pytest.mark.parametrize(
    ("given", "days"), [({}, 90), ({"expires_at": None}, None), ({"expires_at": "2099-01-01"}, ...)]
)
def test_a_token_expires_unless_it_is_asked_not_to(as_session, at, given, days):
    now = clock.now()
    at(now)
    made = as_session(Role.VIEWER)("POST", "/tokens", {"name": "x", "role": "viewer", **given})[1]

    token = ApiToken.objects.get()
    if days is None:
        assert (token.expires_at, made["expires_at"]) == (None, None)
    elif days is ...:
        assert made["expires_at"].startswith("2099-01-01")
    else:
        assert token.expires_at == now + timedelta(days=days)


def test_a_token_expires(at, client):
    now = clock.now()
    _, text = issue_token(
        person(Role.VIEWER), name="x", role=Role.VIEWER, expires_at=now + timedelta(hours=1)
    )

    at(now + timedelta(minutes=59))
    assert bearer(client, text)("GET", "/balance")[0] == 200
    at(now + timedelta(hours=1))
    assert bearer(client, text)("GET", "/balance")[0] == 401


def test_a_token_that_would_be_expired_at_once_is_not_made(as_session):
    status, body = as_session(Role.VIEWER)(
        "POST", "/tokens", {"name": "x", "role": "viewer", "expires_at": "2020-01-01"}
    )

    assert status == 422
    assert "later date" in body["error"]["message"]


def test_nobody_makes_a_token_that_may_do_more_than_they(as_session):
    status, body = as_session(Role.OPERATOR)("POST", "/tokens", {"name": "x", "role": "admin"})

    assert status == 422
    assert "lower role" in body["error"]["message"]
    assert not ApiToken.objects.exists()
    with pytest.raises(TokenError):
        issue_token(person(Role.VIEWER), name="x", role=Role.OPERATOR, expires_at=None)


def test_a_token_makes_no_tokens(as_token):
    status, body = as_token(Role.ADMIN)("POST", "/tokens", {"name": "x", "role": "viewer"})

    assert status == 403
    assert "cannot make tokens" in body["error"]["message"]


def test_a_token_falls_with_the_role_of_its_person(as_token):
    call = as_token(Role.OPERATOR)
    assert call("POST", "/sync")[0] == 202

    User.objects.update(role=Role.VIEWER)

    assert call("POST", "/sync")[0] == 403
    assert call("GET", "/balance")[0] == 200
    assert call("GET", "/tokens")[1]["items"][0]["role"] == "viewer"


def test_a_closed_account_takes_its_tokens_and_sessions_along(as_token, as_session):
    by_token, by_session = as_token(Role.OPERATOR), as_session(Role.OPERATOR)

    User.objects.update(is_active=False)

    assert by_token("GET", "/balance")[0] == 401
    assert by_session("GET", "/balance")[0] == 401


def test_the_last_use_is_written_once_a_minute(at, client, django_assert_num_queries):
    now = clock.now()
    token, text = issue_token(person(Role.VIEWER), name="x", role=Role.VIEWER, expires_at=None)

    authenticate_token(text)
    with django_assert_num_queries(1):
        authenticate_token(text)
    at(now + timedelta(minutes=2))
    authenticate_token(text)

    token.refresh_from_db()
    assert token.last_used_at == now + timedelta(minutes=2)


def test_of_unknown_expired_revoked_and_closed_nobody_learns_which(client):
    owner = person(Role.VIEWER)
    _, expired = issue_token(
        owner, name="x", role=Role.VIEWER, expires_at=clock.now() + timedelta(seconds=30)
    )
    ApiToken.objects.update(expires_at=clock.now() - timedelta(days=1))
    revoked, revoked_text = issue_token(owner, name="x", role=Role.VIEWER, expires_at=None)
    ApiToken.objects.filter(pk=revoked.pk).update(revoked_at=clock.now())

    answers = [
        bearer(client, text)("GET", "/balance")
        for text in (generate_token(), expired, revoked_text, "nonsense", "")
    ]

    assert answers == [answers[0]] * 5
    assert answers[0][0] == 401


def test_a_wrong_token_is_not_covered_by_a_session(as_session):
    signed_in = as_session(Role.ADMIN)

    status, _ = signed_in("GET", "/balance", Authorization=f"Bearer {generate_token()}")

    assert status == 401


def test_after_many_wrong_tokens_an_address_is_told_to_wait_but_valid_tokens_go_on(client, as_token):
    clear_caches()
    valid = as_token(Role.VIEWER)
    wrong = bearer(client, generate_token())
    statuses = [wrong("GET", "/balance")[0] for _ in range(REFUSALS + 2)]

    assert statuses == [401] * REFUSALS + [429, 429]
    response = wrong.raw("GET", "/balance")
    assert 0 < int(response.headers["Retry-After"]) <= 300
    assert (
        client.get(
            "/api/balance", headers={"Authorization": f"Bearer {generate_token()}"}, REMOTE_ADDR="192.0.2.7"
        ).status_code
        == 401
    )
    assert valid("GET", "/balance")[0] == 200


def test_no_flood_of_wrong_tokens_pushes_the_counters_of_sign_in_out_of_their_cache(client):
    clear_caches()
    for number in range(3):
        sent = {"Authorization": f"Bearer {generate_token()}"}
        assert client.get("/api/balance", headers=sent, REMOTE_ADDR=f"192.0.2.{number}").status_code == 401

    with connection.cursor() as cursor:
        cursor.execute("SELECT (SELECT count(*) FROM web_cache), (SELECT count(*) FROM web_remembered)")
        assert cursor.fetchone() == (0, 3)


def test_tokens_of_others_are_the_business_of_admins(as_session, as_token):
    token, _ = issue_token(person(Role.OPERATOR), name="theirs", role=Role.VIEWER, expires_at=None)

    assert as_session(Role.VIEWER)("GET", "/tokens")[1] == {"items": []}
    assert as_session(Role.VIEWER)("GET", "/tokens?everybody=true")[0] == 403
    assert as_session(Role.VIEWER)("DELETE", f"/tokens/{token.pk}")[0] == 404
    assert [each["name"] for each in as_session(Role.ADMIN)("GET", "/tokens?everybody=true")[1]["items"]] == [
        "theirs"
    ]
    assert as_session(Role.ADMIN)("DELETE", f"/tokens/{token.pk}")[0] == 200


def test_a_token_that_leaked_can_end_itself_and_no_other_of_its_owner(client):
    owner = person(Role.ADMIN)
    leaked, text = issue_token(owner, name="Grafana", role=Role.VIEWER, expires_at=None)
    other, _ = issue_token(owner, name="backup", role=Role.ADMIN, expires_at=None)
    call = bearer(client, text)

    assert call("DELETE", f"/tokens/{other.pk}")[0] == 404
    assert call("DELETE", f"/tokens/{leaked.pk}")[0] == 200
    assert call("GET", "/balance")[0] == 401


def test_what_a_token_does_is_written_down_as_its_persons_act_with_its_name(as_token):
    as_token(Role.OPERATOR)("POST", "/sync")

    entry = AuditEntry.objects.get(action="sync.requested")
    assert entry.actor == "operator@example.org (token tests)"
    assert entry.user == person(Role.OPERATOR)
    assert entry.address == "127.0.0.1"
