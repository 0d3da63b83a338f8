"""What the documents say exists, exists: links, anchors, commands, settings, folders."""

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from tools.settings_documents import ADMIN, COMPOSE

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


# Commands of commands first: ``held exclude`` has options that ``held`` has not.
COMMANDS = sorted(set(commands_of(build_parser())), key=lambda words: (-len(words), words))


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


def typed_commands(text):
    """The lines of shell in a document that start a command of ours, as arguments of its parser."""
    for block in re.findall(r"(?m)^ *```sh\n(.*?)^ *```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            starts = [
                number
                for number, word in enumerate(words)
                if Path(word).name == "ocpp-billing" and words[number - 1] != "-u"
            ]
            in_container = re.match(r"docker compose run (?:--rm )?(?:app|sync-worker) (.+)", " ".join(words))
            if in_container:
                yield shlex.split(in_container[1])
            # The word may also be a user or a role: `createuser ocpp-billing`.
            elif starts and words[starts[-1] + 1 :] and words[0] not in OTHER_PROGRAMS:
                yield words[starts[-1] + 1 :]


OTHER_PROGRAMS = {"useradd", "install", "systemctl", "journalctl"}


def ended_with(arguments):
    """What the parser says to arguments: 0 when they are understood, --help and --version included."""
    try:
        build_parser().parse_args(arguments)
    except SystemExit as ended:
        return ended.code
    return 0


@each_document
def test_commands_to_type_are_understood_with_their_options(document, capsys):
    for arguments in typed_commands(document.read_text(encoding="utf-8")):
        assert ended_with(arguments) == 0, f"{' '.join(arguments)}: {capsys.readouterr().err}"


def test_the_documents_have_commands_to_type():
    typed = [" ".join(each) for document in DOCUMENTS for each in typed_commands(document.read_text())]
    assert len(typed) >= 15
    assert {"mappings import mappings.csv --dry-run", "worker", "up"} <= set(typed)


@each_document
def test_options_that_are_named_exist(document):
    """Also within a sentence, where the rest of the line is left out."""
    for line in named_lines(document):
        words = re.sub(r"^\./run ", "", line).split()
        if not words or words[0] != "ocpp-billing":
            continue
        command = next((each for each in COMMANDS if tuple(words[1 : 1 + len(each)]) == each), None)
        if command is None:
            continue
        help_text = parser_of(command).format_help()
        for option in re.findall(r"(?<!\S)--[a-z-]+", " ".join(words)):
            assert re.search(rf"{option}\b", help_text), f"{option} in {line}"


def parser_of(command):
    parser = build_parser()
    for word in command:
        below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
        parser = below[0].choices[word]
    return parser


def test_what_the_tutorial_shows_in_bold_is_on_the_screen():
    """Texts of the portal, with figures taken for the blanks in them."""
    portal = ROOT / "src" / "ocpp_billing"
    files = [*portal.rglob("*.html"), *portal.rglob("*.py")]
    said = " ".join(" ".join(path.read_text(encoding="utf-8").split()) for path in files)
    blanks = re.sub(r"\{\{.*?\}\}|%\(\w+\)s", "#", said)
    tutorial = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    bold = [" ".join(words.split()) for words in re.findall(r"\*\*(.+?)\*\*", tutorial, re.DOTALL)]
    shown = [words for words in bold if words.rstrip("…") not in said]
    assert len(bold) >= 25
    assert [words for words in shown if re.sub(r"[0-9][0-9.]*", "#", words) not in blanks] == ["bold"]


@each_document
def test_examples_of_yaml_are_yaml(document):
    for block in re.findall(r"(?m)^```yaml\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL):
        assert isinstance(yaml.safe_load(block), dict)


def test_the_figures_for_prometheus_are_all_described_and_no_others_are_named():
    source = (ROOT / "src" / "ocpp_billing" / "metrics.py").read_text(encoding="utf-8")
    there = {f"ocpp_billing_{name}" for name in re.findall(r'_(?:gauge|by)\(\s*"([a-z_]+)"', source)}
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`(ocpp_billing_[a-z_]+)`", text)) - {"ocpp_billing_sync"}
    in_rules = set(re.findall(r"ocpp_billing_[a-z_]+(?=[ {])", text))
    assert described == there
    assert in_rules <= there


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


# What documents name that is no setting of the product, and whose it is.
OTHERS = {
    *("OCPP_BILLING_ENV_FILE", "FORWARDED_ALLOW_IPS", "LAGO_DEFAULT_EVENT_STORE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("TEST_DATABASE_URL", "OCPP_BILLING_REQUIRE_BROWSER"),
    # of Python and systemd
    *("SSL_CERT_FILE", "PYTHONDONTWRITEBYTECODE", "AF_INET", "AF_INET6", "AF_UNIX"),
}


@each_document
def test_settings_that_are_named_exist(document):
    of_product = {name.upper() for name in Config.__dataclass_fields__}
    of_compose = {name for name, *_ in (*ADMIN, *COMPOSE)}
    text = " ".join(CODE.findall(document.read_text(encoding="utf-8")))
    named = set(re.findall(r"(?<![A-Za-z0-9_$/-])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?![A-Za-z0-9_*-])", text))
    # A family, such as ALERT_…, is not one setting.
    assert named <= of_product | of_compose | OTHERS


def test_the_rings_of_tests_are_all_described():
    rings = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    named = set(re.findall(r"`tests/([a-z]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert rings == named - {"fixtures"}
