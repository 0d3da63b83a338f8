"""Every error has one shape and says what to do; none says what it must not."""

from __future__ import annotations

import pytest
from django.db import OperationalError

from ocpp_billing.accounts.models import Role
from ocpp_billing.api import balance
from tests.portal import ledger

pytestmark = pytest.mark.django_db


def check_shape(body):
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "fields"}
    assert body["error"]["message"].rstrip().endswith((".", "/api/docs lists all of them."))


@pytest.mark.parametrize(
    ("method", "path", "data", "status", "code"),
    [
        ("GET", "/nowhere", None, 404, "not_found"),
        ("GET", "/mappings/12345", None, 404, "not_found"),
        ("GET", "/sessions/12345", None, 404, "not_found"),
        ("GET", "/sync/runs/12345", None, 404, "not_found"),
        ("PUT", "/balance", None, 405, "method_not_allowed"),
        ("POST", "/held/1/exclude", {}, 422, "invalid"),
        ("GET", "/sessions?cursor=nonsense", None, 422, "invalid"),
        ("GET", "/sessions?from=yesterday", None, 422, "invalid"),
        ("GET", "/sessions/99999999999999999999", None, 422, "invalid"),
        ("POST", "/users", {"email": "x@example.org", "name": "X", "role": "king"}, 422, "invalid"),
        ("POST", "/users", {"email": "x@example.org", "name": "X", "role": "viewer"}, 403, "forbidden"),
    ],
)
def test_errors_have_one_shape(as_token, method, path, data, status, code):
    answer = as_token(Role.ADMIN)(method, path, data)

    assert (answer[0], answer[1]["error"]["code"]) == (status, code)
    check_shape(answer[1])


def test_what_cannot_be_understood_is_named_field_by_field(as_token):
    _, body = as_token(Role.OPERATOR)("POST", "/mappings", {"id_tag": " ", "customer_id": "c"})

    assert {each["field"] for each in body["error"]["fields"]} == {"id_tag", "valid_from"}
    assert "id_tag, valid_from" in body["error"]["message"]


def test_a_body_that_is_no_json_is_an_error_of_the_caller(as_token):
    call = as_token(Role.OPERATOR)

    response = call.client.post(
        "/api/mappings", b"{not json", content_type="application/json", headers=call.headers
    )

    assert response.status_code == 400
    check_shape(response.json())


def test_a_body_that_is_too_big_is_refused(as_token, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100

    status, body = as_token(Role.OPERATOR)("POST", "/mappings", {"id_tag": "x" * 200})

    assert status == 413
    check_shape(body)


def test_characters_that_no_database_keeps_are_refused(as_token):
    data = {"id_tag": "TAG\0", "customer_id": "c", "valid_from": "2026-01-01"}

    assert as_token(Role.OPERATOR)("POST", "/mappings", data)[0] == 422
    assert as_token(Role.OPERATOR)("GET", "/sessions?customer=a%00b")[0] == 422


def test_while_the_database_is_away_the_answer_is_try_again(as_token, monkeypatch):
    def away(_source):
        raise OperationalError("connection to server at 10.0.0.7, user secret_user failed")

    call = as_token(Role.VIEWER)
    monkeypatch.setattr(balance, "counted_balance", away)

    response = call.raw("GET", "/balance")

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    check_shape(response.json())
    assert "secret_user" not in response.content.decode()


def test_what_nobody_foresaw_is_in_the_log_and_not_in_the_answer(as_token, monkeypatch, caplog):
    def breaks(_source):
        raise RuntimeError("the key is hunter2")

    call = as_token(Role.VIEWER)
    monkeypatch.setattr(balance, "counted_balance", breaks)

    status, body = call("GET", "/balance")

    assert status == 500
    check_shape(body)
    assert "hunter2" not in str(body)


def test_an_error_is_never_kept_by_a_cache(as_nobody):
    assert as_nobody.raw("GET", "/balance").headers["Cache-Control"] == "no-store"


def test_an_unknown_password_is_not_repeated_in_an_error(as_token):
    data = {"email": "eve@example.org", "name": "Eve", "role": "viewer", "password": "hunter2hunter2" * 100}

    status, body = as_token(Role.ADMIN)("POST", "/users", data)

    assert status == 422
    assert "hunter2" not in str(body)


def test_an_act_that_contradicts_the_ledger_is_a_conflict(as_token, now):
    session = ledger.add_session(now, state="confirmed")

    status, body = as_token(Role.OPERATOR)("POST", f"/held/{session.pk}/exclude", {"note": "no"})

    assert (status, body["error"]["code"]) == (409, "conflict")
    assert "credit note" in body["error"]["message"]
