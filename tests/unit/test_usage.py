"""Exit code 2, and nothing else: what was typed or set is wrong. And no traceback, whatever was typed."""

import getpass
import io
import json
import os
import socket
import subprocess
import sys

import pytest

from ocpp_billing.cli import main
from ocpp_billing.commands import ground
from ocpp_billing.commands.ground import actor, confirmed
from ocpp_billing.embedded.services import obstacle_to_listening

COMMAND = [sys.executable, "-m", "ocpp_billing.cli"]
CONNECTED = {
    "STEVE_API_URL": "http://127.0.0.1:9",
    "STEVE_API_USERNAME": "admin",
    "STEVE_API_KEY": "key",
    "LAGO_API_KEY": "key",
}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command that may touch no database: (exit code, standard error)."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("OCPP_BILLING_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments, **settings):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        try:
            code = main(arguments)
        except SystemExit as ended:  # argparse's own way to end
            code = ended.code
        output = capsys.readouterr()
        assert output.out == ""
        assert not (tmp_path / "data").exists()
        return code, output.err

    return run


STEVE, LAGO = ["STEVE_API_URL", "STEVE_API_KEY"], ["LAGO_API_KEY"]


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("sync", STEVE + LAGO),
        ("adopt", STEVE + LAGO),
        ("reconcile", STEVE + LAGO),
        ("move 1 --customer alice", LAGO),
        ("stuck close 1", STEVE),
        ("setup-lago", LAGO),
        ("web", ["AUTH_SECRET"]),
    ],
)
def test_settings_that_are_missing_are_wrong_usage_and_no_others_are_asked_for(
    run, monkeypatch, command, needed
):
    monkeypatch.delenv("AUTH_SECRET", raising=False)
    code, said = run(*command.split())
    assert code == 2
    assert [line.partition(" is not set: ")[0] for line in said.splitlines()] == needed


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("go-live --from yesterday", "--from is 'yesterday', but must be a date such as 2026-12-01"),
        ("balance --by day --from x", "--from is 'x', but must be a date"),
        ("balance --by day --to 2026-13-01", "--to is '2026-13-01', but must be a date"),
        ("balance --by day --from 2026-02-01 --to 2026-01-01", "--to must be after --from."),
        ("balance --from 2026-01-01", "--from and --to choose sessions for --by"),
        ("balance --by day --prove", "--prove is about the whole balance"),
        ("reconcile --from x", "--from is 'x', but must be a date"),
        ("reconcile --from 2026-02-01 --to 2026-01-01", "--to must be after --from."),
        ("reconcile --from 2126-02-01", "--from is not over yet."),
        ("demo --once --release 3.8", "There is no recording of 3.8."),
        ("simulate demo --release 3.8", "There is no recording of 3.8."),
        ("simulate steve --release 4", "StEvE 4 is not simulated"),
        ("simulate steve --recording 3.8", "StEvE 3.8 was not recorded"),
        ("simulate steve --credentials me", "must look like USER:PASSWORD"),
        ("simulate steve --context-path steve/", "context path 'steve/' must be empty or begin"),
        ("simulate lago --lago-version abc", "'abc' is no version of Lago such as 1.47.0"),
        ("create-admin", "ADMIN_EMAIL is not set, and there is no terminal to ask on."),
    ],
)
def test_what_does_not_fit_is_wrong_usage(run, command, sentence):
    code, said = run(*command.split(), **CONNECTED)
    assert code == 2
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "argument", "value"),
    [
        *(
            (f"{one} --port", "--port", port)
            for one in ("up", "web", "demo")
            for port in ("0", "70000", "-1", "x")
        ),
        ("healthy web --port", "--port", "70000"),
        ("simulate steve --port", "--port", "70000"),
        ("simulate lago --port", "--port", "-1"),
        ("simulate demo --steve-port", "--steve-port", "70000"),
        ("simulate demo --lago-port", "--lago-port", "65536"),
        ("web --processes", "--processes", "0"),
        ("simulate steve --count", "--count", "-1"),
        ("simulate steve --days", "--days", "nan"),
        ("simulate steve --cost", "--cost", "inf"),
        ("stuck close", "ID", "9223372036854775808"),
        ("stuck close", "ID", "1_000"),
        ("move --customer a", "ID", "\N{ARABIC-INDIC DIGIT ONE}"),
        ("setup-lago --price", "--price", "1e9"),
        ("setup-lago --price", "--price", "-1"),
    ],
)
def test_a_number_out_of_its_range_is_wrong_usage(run, command, argument, value):
    code, said = run(*command.split(), value)
    assert code == 2
    assert f"error: argument {argument}: " in said or value.startswith("-")
    assert "Traceback" not in said


def test_what_is_no_text_is_refused_before_anything_is_done(run):
    wrong = os.fsdecode(b"caf\xe9")
    code, said = run("pause", "--reason", wrong)
    assert (code, said) == (2, "An argument is no text in utf-8: type it anew.\n")
    code, said = run("balance", STEVE_API_KEY=wrong)
    assert (code, said) == (2, "STEVE_API_KEY is no text in utf-8.\n")


def test_an_admins_name_that_is_no_text_is_refused(run):
    admin = {"ADMIN_EMAIL": "a@example.org", "ADMIN_PASSWORD": "x", "ADMIN_NAME": os.fsdecode(b"Jos\xe9")}
    assert run("create-admin", **admin) == (2, "ADMIN_NAME is no text in utf-8.\n")


def test_a_file_of_settings_that_may_not_be_looked_for_is_named(run, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.delenv("OCPP_BILLING_ENV_FILE", raising=False)
    monkeypatch.setattr("pathlib.Path.is_file", refuse)
    assert run("balance") == (2, "The settings in .env cannot be read: Permission denied.\n")


def test_help_that_nobody_reads_to_the_end_ends_without_a_word():
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*COMMAND, "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


# -- where a server can listen ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_is_so_on_any_of_a_names_addresses(monkeypatch, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        taken = socket.create_server((host, 0), family=family)
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")
    with taken:
        port = taken.getsockname()[1]
        assert (
            obstacle_to_listening(host, port)
            == f"Port {port} on {host} is taken. Choose another with --port."
        )
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        found += [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        said = obstacle_to_listening("localhost", port)
        assert said == f"Port {port} on localhost ({host}) is taken. Choose another with --port."


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "", "a" * 70])
def test_a_host_that_is_not_this_machine_is_named(host):
    assert (
        obstacle_to_listening(host, 8000)
        == f"{host} is no address of this machine. Choose another with --host."
    )


def test_a_port_that_is_not_for_this_user_is_named(monkeypatch):
    def refuse(_socket, _address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.bind", refuse)
    said = obstacle_to_listening("127.0.0.1", 80)
    assert said == "This user may not listen on port 80. Choose one above 1023 with --port."


# -- people, terminals, encodings ------------------------------------------------------------------------


def test_somebody_who_ends_the_input_has_not_said_yes(monkeypatch, capsys):
    def end(_prompt):
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", end)
    assert not confirmed("Go live?")
    assert main(["create-admin"]) == 2
    assert "ADMIN_EMAIL is not set, and was not answered." in capsys.readouterr().err


def test_a_user_without_a_name_acts_by_number(monkeypatch):
    def find_none():
        raise KeyError("getpwuid(): uid not found: 4000000")

    monkeypatch.setattr(getpass, "getuser", find_none)
    assert actor() == f"command line (user id {os.getuid()})"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_json_is_json_in_every_encoding(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    ground.prepare_streams()
    ground.out_json({"name": "Zoë 🧀"})
    assert json.loads(written.getvalue().decode(encoding)) == {"name": "Zoë 🧀"}
    ground.out("Zoë 🧀")
    assert written.getvalue().decode(encoding).splitlines()[1].startswith("Zo")
