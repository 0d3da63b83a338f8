"""What is generated from code is current, and leaves nothing out."""

import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from tools.reference_documents import OF_EXCLUSION, ROOT, documents

from ocpp_billing.api.application import api
from ocpp_billing.billing.rules import Limits, SessionFacts, judge_session
from ocpp_billing.charging.models import SessionState
from ocpp_billing.charging.reasons import Reason
from ocpp_billing.cli import build_parser
from ocpp_billing.sync.models import RunStatus
from ocpp_billing.sync.policy import WAITS_FOR_LAGO
from tests.unit.test_documents import commands_of

GENERATED = documents()
REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_the_committed_file_is_current(path):
    assert path.read_text(encoding="utf-8") == GENERATED[path], (
        "write it again with: python -m tools.reference_documents"
    )


def test_every_command_has_its_section():
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    sections = {tuple(words.split()) for words in re.findall(r"(?m)^## `ocpp-billing (.+)`$", text)}
    assert set(commands_of(build_parser())) <= sections


def test_every_route_is_named_with_who_may_call_it():
    text = (REFERENCE / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?m)^\| `([A-Z]+) (/api/\S+)` \| (?:viewer|operator|admin) \|", text))
    paths = api.get_openapi_schema()["paths"]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert named == routes


def test_every_state_and_every_reason_is_named():
    text = (REFERENCE / "states-and-reasons.md").read_text(encoding="utf-8")
    named = re.findall(r"(?m)^\| `([a-z_]+)` \|", text)
    assert {*SessionState.values, *RunStatus.values, *(reason.value for reason in Reason)} <= set(named)


@pytest.mark.parametrize(
    ("stop_wh", "live_from"), [(0, None), (1, None), (5_000, datetime(2026, 12, 1, tzinfo=UTC))]
)
def test_a_reason_that_a_rule_excludes_for_is_listed_as_an_exclusion(stop_wh, live_from):
    began, ended = datetime(2026, 11, 1, 8, tzinfo=UTC), datetime(2026, 11, 1, 9, tzinfo=UTC)
    facts = SessionFacts(began, 0, ended, stop_wh, False, began, ended)
    limits = Limits(Decimal(500), Decimal(400), Decimal(72), Decimal(1))
    verdict = judge_session(facts, limits, live_from)
    assert verdict.outcome == "exclude"
    assert verdict.reason.value in OF_EXCLUSION


def test_a_reason_of_the_rules_that_hold_is_not_listed_as_an_exclusion():
    holding = {*list(Reason)[: list(Reason).index(Reason.ZERO_ENERGY)], *WAITS_FOR_LAGO}
    assert not holding & set(OF_EXCLUSION)
