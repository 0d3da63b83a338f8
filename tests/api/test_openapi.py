"""The OpenAPI holds: whatever is asked by it, or against it, is answered as it says."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from hypothesis import HealthCheck, Phase, given, strategies
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ocpp_billing.accounts.models import Role
from ocpp_billing.accounts.tokens import issue_token
from ocpp_billing.api.application import api
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.sync.models import SyncRun
from tests.api.conftest import person
from tests.portal import ledger
from tests.portal.conftest import BACKEND

pytestmark = pytest.mark.django_db

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
CONFIG = {"generation": {"with-security-parameters": False}}
SCHEMA = schemathesis.openapi.from_dict(api.get_openapi_schema(), config=SchemathesisConfig.from_dict(CONFIG))
OPERATIONS = {result.ok().label: result.ok() for result in SCHEMA.get_all_operations()}
DJANGO = get_wsgi_application()


def from_this_machine(environ, start_response):
    """The application, behind a server that says who asks."""
    return DJANGO({"REMOTE_ADDR": "127.0.0.1", **environ}, start_response)


# What a token may not do, whatever its role.
NOT_BY_TOKEN = {"POST /api/tokens", "POST /api/users", "PATCH /api/users/{user_id}"}
# The same examples in every run: what fails today fails tomorrow.
BOUNDED = hypothesis.settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def one_transaction():
    """Between two requests the test's own connection stays open, as it does with Django's client."""
    signals = (request_started, request_finished)
    for signal in signals:
        signal.disconnect(close_old_connections)
    yield
    for signal in signals:
        signal.connect(close_old_connections)


@pytest.fixture
def credentials(now):
    """Headers and cookies of an admin: by token, and by session with its CSRF token."""
    admin = person(Role.ADMIN)
    _, text = issue_token(admin, name="schemathesis", role=Role.ADMIN, expires_at=None)
    session = SessionStore()
    session[SESSION_KEY] = str(admin.pk)
    session[BACKEND_SESSION_KEY] = BACKEND
    session[HASH_SESSION_KEY] = admin.get_session_auth_hash()
    session.create()
    csrf = "a" * 32
    cookies = {settings.SESSION_COOKIE_NAME: session.session_key, settings.CSRF_COOKIE_NAME: csrf}
    return [
        {"headers": {"Authorization": f"Bearer {text}"}},
        {"headers": {"X-CSRFToken": csrf}, "cookies": cookies},
    ]


@pytest.fixture
def there(now):
    """Path parameters that lead to something."""
    for state in ("held", "accepted", "rejected"):
        ledger.add_session(now, state=state)
    ledger.add_mapping(now, tag="TAG-1")
    ledger.add_run(now, ago=ledger.timedelta(minutes=1))
    token, _ = issue_token(person(Role.VIEWER), name="x", role=Role.VIEWER, expires_at=None)
    return {
        "run_id": SyncRun.objects.get().pk,
        "mapping_id": TagMapping.objects.get().pk,
        "session_id": ChargingSession.objects.get(state="held").pk,
        "event_id": UsageEvent.objects.get(state="rejected").pk,
        "user_id": person(Role.VIEWER).pk,
        "token_id": token.pk,
        "dimension": "day",
    }


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_one_that_the_openapi_names(label, credentials, there):
    operation = OPERATIONS[label]
    known = {name: there[name] for name in there if f"{{{name}}}" in operation.path}
    cases = strategies.one_of(
        operation.as_strategy(GenerationMode.POSITIVE),
        operation.as_strategy(GenerationMode.NEGATIVE),
        *([operation.as_strategy(GenerationMode.POSITIVE, path_parameters=known)] if known else []),
    )

    @BOUNDED
    @given(case=cases, who=strategies.sampled_from(credentials))
    def ask(case, who):
        response = case.call(**who, app=from_this_machine)
        # Lago is away here, and some operations need it.
        assert response.status_code < 500 or response.json()["error"]["code"] == "lago_unreachable"
        assert response.status_code not in {401, 403} or label in NOT_BY_TOKEN
        case.validate_response(response, checks=CHECKS)

    ask()


def test_the_openapi_itself_is_for_people_who_may_call(as_nobody, as_token):
    assert as_nobody.raw("GET", "/openapi.json").status_code == 302
    assert as_token(Role.VIEWER)("GET", "/openapi.json")[1]["openapi"].startswith("3.")
    assert as_nobody.raw("GET", "/openapi.json", Authorization="Bearer nonsense").status_code == 401


def test_every_operation_says_what_it_does_and_has_a_name_of_its_own():
    operations = [
        operation for path in api.get_openapi_schema()["paths"].values() for operation in path.values()
    ]

    assert all(operation["description"] for operation in operations)
    assert all(operation["tags"] for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)
