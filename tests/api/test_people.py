"""Admins add and change people; there is always one of them left; every act is written down."""

from __future__ import annotations

import pytest

from ocpp_billing.accounts.models import AuditEntry, Role, User
from tests.api.conftest import person

pytestmark = pytest.mark.django_db


def test_an_admin_adds_a_person_who_can_sign_in(as_token, client):
    status, added = as_token(Role.ADMIN)(
        "POST",
        "/users",
        {"email": "Eve@Example.org", "name": "Eve", "role": "viewer", "password": "a long and rare phrase"},
    )

    assert (status, added["email"], added["role"]) == (201, "eve@example.org", "viewer")
    assert "password" not in added
    assert User.objects.get(email="eve@example.org").check_password("a long and rare phrase")
    assert AuditEntry.objects.get(action="user.created").actor == "admin@example.org (token tests)"


def test_a_person_without_a_password_cannot_sign_in(as_token):
    as_token(Role.ADMIN)("POST", "/users", {"email": "eve@example.org", "name": "Eve", "role": "viewer"})

    assert not User.objects.get(email="eve@example.org").has_usable_password()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"email": "nobody"}, 422),
        ({"password": "12345678901234"}, 422),
        ({"email": "admin@example.org"}, 409),
    ],
)
def test_who_cannot_be_added_is_not(as_token, change, status):
    call = as_token(Role.ADMIN)
    data = {"email": "eve@example.org", "name": "Eve", "role": "viewer", **change}

    assert call("POST", "/users", data)[0] == status
    assert User.objects.count() == 1


def test_an_admin_changes_what_somebody_may_do(as_token):
    eve = person(Role.VIEWER)

    status, changed = as_token(Role.ADMIN)("PATCH", f"/users/{eve.pk}", {"role": "operator", "active": False})

    assert (status, changed["role"], changed["active"], changed["name"]) == (
        200,
        "operator",
        False,
        "The viewer",
    )
    entry = AuditEntry.objects.get(action="user.changed")
    assert (entry.before["role"], entry.after["role"]) == ("viewer", "operator")


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


def test_the_audit_log_is_found_by_action_and_person_page_by_page(as_token):
    call = as_token(Role.ADMIN)
    for number in range(3):
        call("POST", "/users", {"email": f"eve{number}@example.org", "name": "Eve", "role": "viewer"})

    status, first = call("GET", "/audit?action=user.&limit=2")
    _, second = call("GET", f"/audit?action=user.&limit=2&cursor={first['next']}")

    assert status == 200
    assert [entry["target"] for entry in first["items"] + second["items"]] == [
        f"user eve{number}@example.org" for number in (2, 1, 0)
    ]
    assert second["next"] is None
    assert call("GET", f"/audit?user={person(Role.ADMIN).pk}&action=token.")[1]["items"][0]["address"] is None
