"""What is generated from the command line and the API is current, and leaves nothing out."""

import re

import pytest
from tools.reference_documents import ROOT, documents

from ocpp_billing.api.application import api
from ocpp_billing.cli import build_parser
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
