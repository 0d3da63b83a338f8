"""Who may do what: every operation of the OpenAPI, with every role, by token and by session."""

from __future__ import annotations

import re

import pytest

from ocpp_billing.accounts.models import Role
from ocpp_billing.api.application import api

pytestmark = pytest.mark.django_db

VIEWER, OPERATOR, ADMIN = Role.VIEWER, Role.OPERATOR, Role.ADMIN
# Written by hand: what an operation needs is decided here, not read from the code.
NEEDS = {
    "POST /api/sync": OPERATOR,
    "GET /api/sync/status": VIEWER,
    "GET /api/sync/runs": VIEWER,
    "GET /api/sync/runs/{run_id}": VIEWER,
    "GET /api/sync/runs/{run_id}/log": VIEWER,
    "GET /api/mappings": VIEWER,
    "POST /api/mappings": OPERATOR,
    "POST /api/mappings/preview": OPERATOR,
    "GET /api/mappings/{mapping_id}": VIEWER,
    "PATCH /api/mappings/{mapping_id}": OPERATOR,
    "DELETE /api/mappings/{mapping_id}": OPERATOR,
    "POST /api/mappings/{mapping_id}/end": OPERATOR,
    "POST /api/mappings/{mapping_id}/switch": OPERATOR,
    "GET /api/tags": VIEWER,
    "GET /api/customers": VIEWER,
    "POST /api/customers/refresh": OPERATOR,
    "GET /api/subscriptions": VIEWER,
    "POST /api/subscriptions/refresh": OPERATOR,
    "GET /api/sessions": VIEWER,
    "GET /api/sessions/{session_id}": VIEWER,
    "GET /api/billing-events": VIEWER,
    "GET /api/billing-events/{event_id}": VIEWER,
    "POST /api/billing-events/{event_id}/retry": OPERATOR,
    "GET /api/held": VIEWER,
    "POST /api/held/{session_id}/accept": OPERATOR,
    "POST /api/held/{session_id}/exclude": OPERATOR,
    "POST /api/held/{session_id}/assign": OPERATOR,
    "POST /api/held/{session_id}/reading": OPERATOR,
    "GET /api/balance": VIEWER,
    "GET /api/balance/by/{dimension}": VIEWER,
    "GET /api/users": ADMIN,
    "POST /api/users": ADMIN,
    "GET /api/users/{user_id}": ADMIN,
    "PATCH /api/users/{user_id}": ADMIN,
    "GET /api/tokens": VIEWER,
    "POST /api/tokens": VIEWER,
    "DELETE /api/tokens/{token_id}": VIEWER,
    "GET /api/audit": ADMIN,
}
ORDER = [VIEWER, OPERATOR, ADMIN]


def operations():
    schema = api.get_openapi_schema()
    return {
        f"{method.upper()} {path}": operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }


def call(client, operation):
    method, path = operation.split(" ")
    path = path.replace("{dimension}", "day")
    path = re.sub(r"\{\w+\}", "999999999", path)
    return client(method, path, {} if method in {"POST", "PATCH"} else None)


def test_every_operation_of_the_openapi_is_in_the_matrix_and_the_other_way_round():
    assert set(operations()) == set(NEEDS)


def test_the_openapi_says_which_role_each_operation_needs():
    assert {name: operation["x-role"] for name, operation in operations().items()} == {
        name: str(role) for name, role in NEEDS.items()
    }


def test_nobody_does_anything_without_being_somebody(as_nobody):
    for operation in NEEDS:
        status, body = call(as_nobody, operation)

        assert status == 401, operation
        assert body["error"]["code"] == "unauthenticated", operation
        assert "Bearer" in body["error"]["message"], operation


@pytest.mark.parametrize("role", ORDER)
def test_a_token_does_what_its_role_may_and_no_more(role, as_token):
    client = as_token(role)
    for operation in NEEDS:
        check(operation, role, call(client, operation))


@pytest.mark.parametrize("role", ORDER)
def test_a_session_does_what_its_role_may_and_no_more(role, as_session):
    client = as_session(role)
    for operation in NEEDS:
        check(operation, role, call(client, operation))


def check(operation, role, answer):
    """Nothing that is asked for is there and bodies are empty: who may, is told so by 404 or 422."""
    status, body = answer
    if ORDER.index(role) < ORDER.index(NEEDS[operation]):
        assert (status, body["error"]["code"]) == (403, "forbidden"), operation
        assert f"needs {NEEDS[operation]}" in body["error"]["message"], operation
    else:
        assert status not in {401, 403, 405}, operation
        assert status < 500 or body["error"]["code"] == "lago_unreachable", operation


def test_a_session_changes_nothing_without_the_csrf_token(as_session):
    client = as_session(ADMIN, csrf=False)
    for operation in [name for name in NEEDS if not name.startswith("GET ")]:
        status, body = call(client, operation)

        assert (status, body["error"]["code"]) == (403, "csrf"), operation


def test_a_session_reads_without_the_csrf_token(as_session):
    assert as_session(VIEWER, csrf=False)("GET", "/balance")[0] == 200


def test_a_session_changes_nothing_when_another_site_asks(as_session):
    status, body = as_session(ADMIN)("POST", "/sync", Origin="https://evil.example")

    assert (status, body["error"]["code"]) == (403, "csrf")


def test_an_operation_that_says_nothing_about_roles_is_for_admins():
    assert {auth.needs for auth in api.auth} == {ADMIN}
