"""What the documents say exists, exists: links, anchors, commands, settings, folders."""

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from ocpp_billing.cli import build_parser
from ocpp_billing.config import Config

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(path):
    """The fragments of a Markdown file's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"(?m)^#+ +(.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_lead_somewhere(document):
    text = CODE.sub("", document.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        assert there.exists(), f"{target} of {document.name}"
        assert there.is_relative_to(ROOT), f"{target} of {document.name} leaves the repository"
        if fragment:
            assert fragment in anchors(there), f"{target} of {document.name}"


def test_every_document_can_be_reached_from_the_readme():
    reached, left = set(), [ROOT / "README.md"]
    while left:
        document = left.pop()
        if document in reached or document.suffix != ".md":
            continue
        reached.add(document)
        text = CODE.sub("", document.read_text(encoding="utf-8"))
        local = [target.partition("#")[0] for target in LINK.findall(text) if ":" not in target]
        left += [(document.parent / path).resolve() for path in local if path]
    assert set(DOCUMENTS) <= reached


def test_decisions_are_numbered_without_a_gap():
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(name[:3]) for name in names] == list(range(1, len(names) + 1))


def commands_of(parser, before=()):
    """Every command line of a parser, as tuples: ("sync",), ("mappings", "import"), ..."""
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if before and not any(action.required for action in subparsers):
        yield before
    for action in subparsers:
        for name, parser_of_command in action.choices.items():
            yield from commands_of(parser_of_command, (*before, name))


COMMANDS = set(commands_of(build_parser()))


def named_lines(document):
    """What stands in code, line by line, without comments."""
    for code in CODE.findall(document.read_text(encoding="utf-8")):
        for line in code.strip("`").splitlines():
            yield line.split(" #")[0].strip()


@each_document
def test_commands_that_are_named_exist(document):
    for line in named_lines(document):
        words = re.sub(r"^(\./run )?ocpp-billing\b", "ocpp-billing", line).split()
        if not words or words[0] != "ocpp-billing" or words[1:2] in ([], ["--help"], ["COMMAND"]):
            continue
        assert any(tuple(words[1 : 1 + len(command)]) == command for command in COMMANDS), line


def test_the_readmes_commands_are_understood_with_their_options():
    understood = 0
    for line in named_lines(ROOT / "README.md"):
        if line.startswith("./run ocpp-billing ") and "--help" not in line:
            build_parser().parse_args(shlex.split(line)[2:])
            understood += 1
    assert understood >= 8


@pytest.mark.parametrize("command", sorted(COMMANDS), ids=" ".join)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*command, "--help"])
    assert ended.value.code == 0
    assert f"usage: ocpp-billing {' '.join(command)}" in capsys.readouterr().out


def run_usage():
    said = subprocess.run([ROOT / "run", "--help"], capture_output=True, text=True, check=True, timeout=30)
    return said.stdout


@each_document
def test_commands_of_the_start_script_that_are_named_exist(document):
    known = set(re.findall(r"(?m)^\./run ([a-z-]+)", run_usage()))
    named = {line.split()[1] for line in named_lines(document) if re.match(r"\./run [a-z]", line)}
    assert named <= known


def test_the_start_script_refuses_what_it_does_not_know():
    said = subprocess.run([ROOT / "run", "dmeo"], capture_output=True, text=True, check=False, timeout=30)
    assert said.returncode == 2
    assert "there is no command dmeo" in said.stderr
    assert run_usage() in said.stderr


def test_continuous_integration_runs_the_readmes_test_command():
    first_block = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    demo, test = [line.split(" #")[0].strip() for line in first_block[1].splitlines()]
    assert demo == "./run demo"
    assert (
        (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().splitlines()[-1] == test == "./run test"
    )


@each_document
def test_settings_that_are_named_exist(document):
    of_product = {name.upper() for name in Config.__dataclass_fields__}
    others = {"OCPP_BILLING_ENV_FILE", "TEST_DATABASE_URL", "ADMIN_EMAIL", "ADMIN_PASSWORD", "ADMIN_NAME"}
    text = " ".join(CODE.findall(document.read_text(encoding="utf-8")))
    prefixes = "STEVE|LAGO|SYNC|BILLING|DELIVERY|OCPP_BILLING|AUTH|DATABASE|ADMIN|CONFIRM|LATE|MAX|MIN|TEST"
    named = set(re.findall(rf"(?<![A-Z_-])(?:{prefixes})_[A-Z_]+", text))
    assert named <= of_product | others


def test_the_rings_of_tests_are_all_described():
    rings = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    named = set(re.findall(r"`tests/([a-z]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert rings == named - {"fixtures"}
