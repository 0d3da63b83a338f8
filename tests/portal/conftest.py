"""People, and the clients they are signed in with."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import pytest
from allauth.account.internal.flows.login import record_authentication
from django.conf import settings as django_settings
from django.contrib.auth.hashers import make_password

from ocpp_billing import clock
from ocpp_billing.accounts.models import Role, User
from tests.caches import clear_caches
from tests.smtp import mail_server
from tests.world import forget_people

PASSWORD = "correct horse battery staple"
BACKEND = "allauth.account.auth_backends.AuthenticationBackend"


@pytest.fixture
def now(at):
    """The time stands still: however slow the machine, "41 s ago" stays that."""
    return at(clock.now())


@functools.cache
def hashed_password():
    """What the product keeps of PASSWORD, worked out once: that takes a fifth of a second each time, on purpose."""
    return make_password(PASSWORD)


def add_person(role, email=None, **fields):
    person = User(email=email or f"{role}@example.org", name=f"The {role}", role=role, **fields)
    person.password = hashed_password()
    person.save()
    return person


def confirm(client, person):
    """As if the person had given their password once more just now."""
    session = client.session
    record_authentication(SimpleNamespace(session=session), person, "password", reauthenticated=True)
    session.save()


@pytest.fixture
def signed_in(db):
    """A function: role -> a client whose person has it, and has proved it just now unless told otherwise."""
    from django.test import Client

    def sign_in(role=Role.ADMIN, *, confirmed=True):
        client = Client()
        person = User.objects.filter(role=role).first() or add_person(role)
        client.force_login(person, backend=BACKEND)
        if confirmed:
            confirm(client, person)
        return client

    return sign_in


@pytest.fixture
def operated(world, settings):
    """A function: role -> a client of the portal, between a StEvE and a Lago that answer.

    The engine commits, so no transaction is around such a test: its module must not be marked ``django_db``.
    """
    from django.test import Client

    def sign_in(role=Role.ADMIN):
        client = Client()
        client.force_login(User.objects.filter(role=role).first() or add_person(role), backend=BACKEND)
        return client

    settings.CONFIG = world.config()
    clear_caches()
    yield sign_in
    clear_caches()
    forget_people()


@pytest.fixture
def configured(settings):
    """Both systems are configured, billing has begun."""
    settings.CONFIG = dataclasses.replace(
        django_settings.CONFIG,
        steve_api_url="http://localhost:9",
        steve_api_key="key",
        steve_api_username="api",
        lago_api_key="key",
        billing_start="2026-01-01",
    )
    return settings.CONFIG


@pytest.fixture
def mailbox(settings, monkeypatch):
    """A mail server that is set up; what would be sent after the answer is sent before it."""
    monkeypatch.setattr("ocpp_billing.accounts.letters.soon", lambda work: work())
    with mail_server() as server:
        settings.CONFIG = dataclasses.replace(
            django_settings.CONFIG,
            email_host="127.0.0.1",
            email_port=server.server_address[1],
            email_security="none",
            email_from="billing@example.org",
        )
        yield server


@pytest.fixture
def at():
    """A function that sets the time, for this test."""

    def install(instant):
        clock.install_clock(lambda: instant)
        return instant

    yield install
    clock.install_clock(None)
