"""Whatever StEvE, Lago and people wrote is shown as text on every page: nothing of it becomes an element."""

from __future__ import annotations

import re

import pytest
from django.apps import apps
from django.db import DatabaseError, models, transaction
from django.urls import get_resolver

from ocpp_billing.accounts.models import Role, User
from ocpp_billing.accounts.tokens import issue_token
from ocpp_billing.billing.models import UsageEvent
from ocpp_billing.charging.models import ChargingSession
from ocpp_billing.mappings.models import TagMapping
from ocpp_billing.mappings.store import create_mapping
from ocpp_billing.sync.models import SyncRun
from tests.portal import ledger
from tests.portal.test_every_page import Page

pytestmark = pytest.mark.django_db

NASTY = "\"'><i onload=a()><script>a()</script>{{7*7}}"
# What must have been filled with it; the rest is filled as far as the ledger's constraints let it.
FILLED = {
    "accounts.User.name",
    "accounts.ApiToken.name",
    "accounts.AuditEntry.actor",
    "accounts.AuditEntry.note",
    "accounts.AuditEntry.target",
    "billing.Decision.says",
    "billing.UsageEvent.external_customer_id",
    "charging.ChargingSession.charge_box_id",
    "charging.ChargingSession.id_tag_text",
    "charging.IdTag.text",
    "mappings.TagMapping.customer_external_id",
    "mappings.TagMapping.note",
    "sync.SyncRun.requested_by",
}
# Text that the code itself chooses from, or that a query looks for.
KEPT = re.compile(
    r"state|reason|status|role|kind|trigger|outcome|password|source|folded|metric_code|delivery|email"
)


def fill_every_text():
    filled = set()
    for label in ("accounts", "billing", "charging", "mappings", "sync"):
        for model in apps.get_app_config(label).get_models():
            for field in model._meta.concrete_fields:
                if (
                    not isinstance(field, models.CharField | models.TextField)
                    or field.choices
                    or field.primary_key
                ):
                    continue
                if KEPT.search(field.name):
                    continue
                try:
                    with transaction.atomic():
                        if model._default_manager.update(**{field.name: NASTY[: field.max_length]}):
                            filled.add(f"{label}.{model.__name__}.{field.name}")
                except DatabaseError:
                    continue
    return filled


def pages_of(person):
    """Every page of the portal that has one to show, with numbers of what is there."""
    numbers = {
        "session_id": ChargingSession.objects.filter(state="held").values_list("pk", flat=True)[0],
        "mapping_id": TagMapping.objects.values_list("pk", flat=True)[0],
        "run_id": SyncRun.objects.filter(status="failed").values_list("pk", flat=True)[0],
        "user_id": person.pk,
        "token_id": person.api_tokens.values_list("pk", flat=True)[0],
    }
    (portal,) = [one for one in get_resolver().url_patterns if getattr(one, "namespace", None) == "portal"]
    for view in portal.url_patterns:
        path = f"/{view.pattern}"
        for name, number in numbers.items():
            path = path.replace(f"<int:{name}>", str(number))
        path = path.replace("<slug:state>/<path:reason>", "held/unmapped_tag")
        for act in ("accept", "exclude", "deactivate") if "<slug:act>" in path else ("",):
            shown = path.replace("<slug:act>", act)
            if "<" not in shown and shown != "/live":
                yield shown


@pytest.mark.parametrize("role", [Role.ADMIN, Role.VIEWER])
def test_no_page_takes_foreign_words_for_its_own(signed_in, now, configured, role):
    client = signed_in(role)
    person = User.objects.get(role=role)
    issue_token(person, name="monitoring", role=Role.VIEWER, expires_at=None)
    ledger.fill(now)
    for mapping in range(2):
        create_mapping(
            source="main",
            id_tag=f"NEW-{mapping}",
            customer="alice",
            subscription=None,
            valid_from=now,
            by="test",
            note="x",
        )
    assert fill_every_text() >= FILLED
    escaped, looked_at = 0, 0
    for path in pages_of(person):
        answer = client.get(path)
        assert answer.status_code < 500, path
        if answer.status_code != 200 or "html" not in answer.headers["Content-Type"]:
            continue
        looked_at += 1
        text = answer.content.decode()
        page = Page(text)
        assert page.inline == [], path
        assert "<i onload" not in text, path
        assert "<script>a()" not in text, path
        assert "49" not in re.findall(r"script&gt;(..)", text), path  # nobody draws it as a template
        escaped += "&lt;i onload" in text
    assert looked_at >= (20 if role == Role.ADMIN else 8)
    assert escaped >= (10 if role == Role.ADMIN else 3)


def test_an_answer_of_the_api_is_never_taken_for_a_page(signed_in, now):
    ledger.fill(now)
    UsageEvent.objects.update(external_customer_id=NASTY)
    client = signed_in()
    for path in ("/api/billing-events", "/api/sessions", f"/api/{NASTY}", f"/api/sessions?tag={NASTY}"):
        answer = client.get(path)
        assert answer.headers["Content-Type"].startswith("application/json"), path
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
