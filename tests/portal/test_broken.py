"""What could not be made: the page and the API say it in words where the database is the cause."""

from __future__ import annotations

import psycopg
import pytest
from django.db import OperationalError, connection

NO_SPACE = psycopg.errors.DiskFull("could not extend file: No space left on device")


@pytest.mark.parametrize(
    ("cause", "says", "code"),
    [
        (NO_SPACE, "The disk of the database is full", "database_full"),
        (None, "The database does not answer", "database_unreachable"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_from_a_fault_of_ours(operated, cause, says, code):
    client = operated()
    client.raise_request_exception = False

    def refuse(*_):
        raise OperationalError("what the driver says of 10.0.0.7") from cause

    with connection.execute_wrapper(refuse):
        page, api = client.get("/"), client.get("/api/balance")

    assert (page.status_code, api.status_code) == (503, 503)
    assert says in page.content.decode()
    assert "10.0.0.7" not in page.content.decode()
    assert api.json()["error"]["code"] == code


def test_a_fault_of_ours_stays_one(operated):
    client = operated()
    client.raise_request_exception = False

    def fail(*_):
        raise ZeroDivisionError

    with connection.execute_wrapper(fail):
        page = client.get("/")

    assert page.status_code == 500
    assert "database" not in page.content.decode().partition("<main")[2]
