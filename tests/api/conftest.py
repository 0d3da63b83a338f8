"""People with tokens and sessions, and a client that calls the API as one of them."""

from __future__ import annotations

import dataclasses
import json

import pytest
from django.conf import settings as django_settings
from django.test import Client

from ocpp_billing import clock
from ocpp_billing.accounts.models import Role, User
from ocpp_billing.accounts.tokens import issue_token
from tests.caches import clear_caches
from tests.portal.conftest import BACKEND
from tests.world import forget_people


@pytest.fixture(autouse=True)
def lago_is_away(settings):
    """Lago answers nobody here, and does so at once; a test of the directory brings its own."""
    settings.CONFIG = dataclasses.replace(
        django_settings.CONFIG, lago_api_url="http://127.0.0.1:9", lago_api_key="key"
    )


@pytest.fixture
def now():
    return clock.now()


def person(role):
    """Somebody of that role. Without a password: hashing one takes longer than most tests."""
    known = User.objects.filter(role=role).first()
    return known or User.objects.create_user(f"{role}@example.org", None, name=f"The {role}", role=role)


class Api:
    """Calls the API with a bearer token, or a session, or nothing; answers are (status, JSON)."""

    def __init__(self, client, headers=None):
        self.client = client
        self.headers = headers or {}

    def __call__(self, method, path, data=None, **headers):
        response = self.raw(method, path, data, **headers)
        return response.status_code, json.loads(response.content) if response.content else None

    def raw(self, method, path, data=None, **headers):
        sent = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        body = {} if data is None else {"data": json.dumps(data), "content_type": "application/json"}
        path = path if path.startswith("/api") else f"/api{path}"
        return self.client.generic(method, path, headers=sent, **body)


@pytest.fixture
def as_token():
    """A function: role -> the API with a token of that role."""

    def calls(role=Role.ADMIN, *, owner=None):
        _, text = issue_token(owner or person(role), name="tests", role=role, expires_at=None)
        return Api(Client(), {"Authorization": f"Bearer {text}"})

    return calls


@pytest.fixture
def as_session():
    """A function: role -> the API with a signed-in session, CSRF enforced and its token sent."""

    def calls(role=Role.ADMIN, *, csrf=True):
        client = Client(enforce_csrf_checks=True)
        client.force_login(person(role), backend=BACKEND)
        if not csrf:
            return Api(client)
        client.cookies["csrftoken"] = "a" * 32
        return Api(client, {"X-CSRFToken": "a" * 32})

    return calls


@pytest.fixture
def call(world, as_token, settings, lago_is_away):
    """The API as an operator, between a StEvE and a Lago that answer."""
    settings.CONFIG = world.config()
    clear_caches()  # what an earlier test left committed
    yield as_token(Role.OPERATOR)
    clear_caches()
    forget_people()


@pytest.fixture
def as_nobody():
    return Api(Client(enforce_csrf_checks=True))
