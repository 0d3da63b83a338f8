"""Admins add and change people; there is always one of them left; every act is written down."""

from __future__ import annotations

import pytest

from ocpp_billing.accounts.models import AuditEntry, Role, User
from tests.api.conftest import person
from tests.portal.conftest import confirm

pytestmark = pytest.mark.django_db


def test_an_admin_adds_a_person_who_can_sign_in(as_session):
    status, added = as_session(Role.ADMIN)(
        "POST",
        "/users",
        {"email": "Eve@Example.org", "name": "Eve", "role": "viewer", "password": "a long and rare phrase"},
    )

    assert (status, added["email"], added["role"]) == (201, "eve@example.org", "viewer")
    assert "password" not in added
    assert User.objects.get(email="eve@example.org").check_password("a long and rare phrase")
    assert AuditEntry.objects.get(action="user.created").actor == "admin@example.org"


def test_a_person_without_a_password_cannot_sign_in(as_session):
    as_session(Role.ADMIN)("POST", "/users", {"email": "eve@example.org", "name": "Eve", "role": "viewer"})

    assert not User.objects.get(email="eve@example.org").has_usable_password()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"email": "nobody"}, 422),
        ({"password": "12345678901234"}, 422),
        ({"email": "admin@example.org"}, 409),
    ],
)
def test_who_cannot_be_added_is_not(as_session, change, status):
    call = as_session(Role.ADMIN)
    data = {"email": "eve@example.org", "name": "Eve", "role": "viewer", **change}

    assert call("POST", "/users", data)[0] == status
    assert User.objects.count() == 1


def test_an_admin_changes_what_somebody_may_do(as_session):
    eve = person(Role.VIEWER)

    status, changed = as_session(Role.ADMIN)(
        "PATCH", f"/users/{eve.pk}", {"role": "operator", "active": False}
    )

    assert (status, changed["role"], changed["active"], changed["name"]) == (
        200,
        "operator",
        False,
        "The viewer",
    )
    entry = AuditEntry.objects.get(action="user.changed")
    assert (entry.before["role"], entry.after["role"]) == ("viewer", "operator")


@pytest.mark.parametrize("password", [None, "a long and rare phrase"])
def test_a_token_gives_nobody_a_way_in_that_would_outlive_it(as_token, password):
    status, body = as_token(Role.ADMIN)(
        "POST",
        "/users",
        {"email": "eve@example.org", "name": "Eve", "role": "admin", "password": password},
    )

    assert (status, body["error"]["code"]) == (403, "forbidden")
    assert "in the portal, under Users" in body["error"]["message"]
    assert not User.objects.filter(email="eve@example.org").exists()


@pytest.mark.parametrize(
    ("was", "change"),
    [
        ({"role": Role.VIEWER}, {"role": "operator"}),
        ({"role": Role.OPERATOR}, {"role": "admin", "name": "Eve"}),
        ({"role": Role.ADMIN, "is_active": False}, {"active": True}),
        ({"role": Role.VIEWER, "is_active": False}, {"role": "admin"}),
        ({"role": Role.ADMIN, "is_active": False}, {"role": "viewer", "active": True}),
    ],
)
def test_a_token_raises_nobody(as_token, was, change):
    call = as_token(Role.ADMIN)
    eve = User.objects.create_user("eve@example.org", None, **was)

    status, body = call("PATCH", f"/users/{eve.pk}", change)

    assert (status, body["error"]["code"]) == (403, "forbidden")
    assert "in the portal, under Users" in body["error"]["message"]
    eve.refresh_from_db()
    assert {field: getattr(eve, field) for field in was} == was
    assert not AuditEntry.objects.filter(action="user.changed").exists()


def test_a_token_lowers_a_role_renames_and_closes_an_account(as_token):
    eve = User.objects.create_user("eve@example.org", None, name="Eve", role=Role.OPERATOR)

    status, changed = as_token(Role.ADMIN)(
        "PATCH", f"/users/{eve.pk}", {"role": "viewer", "active": False, "name": "Eve, gone"}
    )

    assert (status, changed["role"], changed["active"], changed["name"]) == (
        200,
        "viewer",
        False,
        "Eve, gone",
    )
    assert AuditEntry.objects.get(action="user.changed").actor == "admin@example.org (token tests)"


def test_a_session_lets_people_in_only_after_its_person_proved_that_it_is_them(as_session):
    admin = person(Role.ADMIN)
    admin.set_password("a long and rare phrase")
    admin.save()
    eve = {"email": "eve@example.org", "name": "Eve", "role": "viewer"}
    call = as_session(Role.ADMIN)

    for method, path, data in (
        ("POST", "/users", eve),
        ("PATCH", f"/users/{person(Role.VIEWER).pk}", {"role": "admin"}),
        ("POST", "/tokens", {"name": "x", "role": "viewer"}),
    ):
        status, body = call(method, path, data)
        assert (status, body["error"]["code"]) == (403, "confirmation_required")
        assert "/accounts/reauthenticate/" in body["error"]["message"]

    confirm(call.client, admin)
    assert call("POST", "/users", eve)[0] == 201


@pytest.mark.parametrize("change", [{"role": "viewer"}, {"active": False}])
def test_the_last_admin_stays(as_token, change):
    call = as_token(Role.ADMIN)

    status, body = call("PATCH", f"/users/{person(Role.ADMIN).pk}", change)

    assert (status, body["error"]["code"]) == (409, "conflict")
    assert person(Role.ADMIN).is_admin


def test_an_admin_may_go_when_another_stays(as_token):
    call = as_token(Role.ADMIN)
    second = User.objects.create_user("second@example.org", None, name="Second", role=Role.ADMIN)

    assert call("PATCH", f"/users/{second.pk}", {"role": "viewer"})[0] == 200


def test_the_audit_log_is_found_by_action_and_person_page_by_page(as_token, as_session):
    call, signed_in = as_token(Role.ADMIN), as_session(Role.ADMIN)
    for number in range(3):
        signed_in("POST", "/users", {"email": f"eve{number}@example.org", "name": "Eve", "role": "viewer"})

    status, first = call("GET", "/audit?action=user.&limit=2")
    _, second = call("GET", f"/audit?action=user.&limit=2&cursor={first['next']}")

    assert status == 200
    assert [entry["target"] for entry in first["items"] + second["items"]] == [
        f"user eve{number}@example.org" for number in (2, 1, 0)
    ]
    assert second["next"] is None
    assert call("GET", f"/audit?user={person(Role.ADMIN).pk}&action=token.")[1]["items"][0]["address"] is None
