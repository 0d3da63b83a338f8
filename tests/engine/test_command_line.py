"""``ocpp-billing`` as a real process: what it prints, how it exits, and what it says when it cannot."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from django.db import connection

from ocpp_billing.accounts.models import AuditEntry, User
from ocpp_billing.billing.models import BalanceProof, DeliveryControl
from ocpp_billing.cli import main
from ocpp_billing.commands.services import people_come_to
from ocpp_billing.mappings.models import TagMapping
from tests.engine.processes import COMMAND, environment, run_command, running, test_database_url
from tests.smtp import mail_server

HOUR = timedelta(hours=1)
STATES = ["open", "stuck", "held", "rejected", "queued", "accepted", "confirmed", "excluded"]
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture
def now():
    """Processes of their own have the machine's clock."""
    return datetime.now(UTC)


@pytest.fixture
def live(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    return world


@pytest.fixture
def command(world):
    """Run a command on the test database, connected to the world, with some settings changed."""

    def run(*arguments, stdin="", **settings):
        chosen = world.environment(**settings) | {"DATABASE_URL": test_database_url()}
        return run_command(*arguments, settings=chosen, stdin=stdin)

    return run


@pytest.fixture
def here(world, monkeypatch, capsys):
    """The same within this process, which is quicker: (exit code, standard output, standard error)."""

    def run(*arguments, **settings):
        for name, value in world.environment(**settings).items():
            monkeypatch.setenv(name, value)
        code = main(arguments)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


# -- sync and balance ----------------------------------------------------------------------------------


def test_whoever_reads_only_the_first_lines_gets_no_traceback(world):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*COMMAND, "balance"],
            env=environment(world.environment() | {"DATABASE_URL": test_database_url()}),
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_sync_and_balance_print_json_of_a_fixed_shape(live, command):
    live.session("TAG-ALICE", energy_wh=12_345)
    live.session("TAG-NOBODY", "CP-2", energy_wh=700)
    synced = command("sync", "--json")
    assert synced.returncode == 0, synced.stderr
    run = json.loads(synced.stdout)
    assert list(run) == [
        *(
            "run_id",
            "status",
            "trigger",
            "delivery",
            "discovered",
            "changed",
            "malformed",
            "held",
            "excluded",
        ),
        *("queued", "accepted", "rejected", "confirmed", "steve_calls", "lago_calls", "duration_s", "errors"),
    ]
    assert (run["status"], run["trigger"], run["delivery"]) == ("completed", "command", "live")
    counts = {name: run[name] for name in ("discovered", "held", "queued", "accepted", "confirmed")}
    assert counts == {"discovered": 2, "held": 1, "queued": 1, "accepted": 1, "confirmed": 1}
    assert isinstance(run["duration_s"], float)
    assert run["errors"] == []

    balanced = command("balance", "--json")
    assert balanced.returncode == 0
    balance = json.loads(balanced.stdout)
    nothing = {"sessions": 0, "energy_wh": 0}
    assert list(balance) == ["read", "states", "reasons", "negative", "malformed", "unexplained", "proved_at"]
    assert datetime.fromisoformat(balance.pop("proved_at")) == BalanceProof.objects.latest("id").proved_at
    assert list(balance["states"]) == STATES
    filled = {
        "held": {"sessions": 1, "energy_wh": 700},
        "confirmed": {"sessions": 1, "energy_wh": 12_345},
    }
    assert balance == {
        "read": {"sessions": 2, "energy_wh": 13_045},
        "states": dict.fromkeys(STATES, nothing) | filled,
        "reasons": {"unmapped_tag": {"sessions": 1, "energy_wh": 700}},
        "negative": nothing,
        "malformed": 0,
        "unexplained": nothing,
    }
    assert '.0"' not in balanced.stdout
    live.assert_conserved()


def test_a_sync_that_set_a_row_aside_exits_with_3(live, command):
    bad = live.session("TAG-ALICE")
    live.session("TAG-ALICE", "CP-2", energy_wh=2_000)
    live.show_as(bad, startValue="NaN")
    done = command("sync", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["status"] == "partial"
    assert live.lago_wh() == 2_000


def test_sync_and_balance_are_readable_without_json(live, here):
    live.session("TAG-ALICE", energy_wh=12_345)
    code, out, _ = here("sync")
    assert code == 0
    assert "completed" in out
    assert "1 confirmed" in out
    code, out, _ = here("balance")
    assert code == 0
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert lines["confirmed"] == ["1", "12.345"]
    assert lines["read"] == ["from", "StEvE", "1", "12.345"]
    assert "unexplained 0 sessions, 0.000 kWh" in out


def test_shadow_mode_is_said_in_every_summary(world, here):
    code, out, _ = here("sync")
    assert code == 0
    assert "Shadow mode: nothing is sent to Lago" in out


# -- what cannot be done is one clear sentence -----------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "settings", "sentence"),
    [
        pytest.param("3.14", {"steve_api_key": "wrong"}, "STEVE_API_KEY", id="wrong-key-of-steve"),
        pytest.param("3.14", {"steve_api_username": None}, "STEVE_API_USERNAME", id="user-name-missing"),
        pytest.param("3.7", {"steve_api_key_header": "X-Key"}, "STEVE_API_KEY_HEADER", id="wrong-header"),
        pytest.param("3.14", {"steve_api_url": NOBODY}, "STEVE_API_URL", id="steve-down"),
        pytest.param("3.14", {"lago_api_key": "wrong"}, "LAGO_API_KEY", id="wrong-key-of-lago"),
        pytest.param("3.14", {"lago_api_url": NOBODY}, "LAGO_API_URL", id="lago-down"),
    ],
)
def test_a_system_that_cannot_be_used_is_named_and_nothing_is_lost(live, command, here, settings, sentence):
    session = live.session("TAG-ALICE", energy_wh=6_000)
    done = command("sync", **settings)
    assert done.returncode == 1
    said = [line for line in done.stdout.splitlines() if sentence in line]
    assert len(said) == 1, done.stdout
    assert here("sync")[0] == 0
    assert live.state_of(session) == ("confirmed", None)
    assert live.lago_wh() == 6_000
    live.assert_conserved()


def test_sync_names_every_setting_that_is_missing_before_it_touches_a_database(tmp_path):
    nothing = {"DATABASE_URL": "", "OCPP_BILLING_DATA_DIR": str(tmp_path / "data")}
    done = run_command("sync", "--json", settings=nothing)
    assert done.returncode == 2
    named = [line.partition(" is not set: ")[0] for line in done.stderr.splitlines()]
    assert named == ["STEVE_API_URL", "STEVE_API_KEY", "LAGO_API_KEY"]
    assert done.stdout == ""
    assert not (tmp_path / "data").exists()


def test_malformed_settings_are_all_named_with_what_they_should_look_like():
    done = run_command(
        "balance",
        settings={
            "STEVE_API_URL": "steve.example.org",
            "SYNC_CRON_SCHEDULE": "every quarter",
            "SYNC_TIMEZONE": "Berlin",
            "LATE_POLICY": "maybe",
            "MAX_POWER_KW": "-1",
            "AUTH_SECRET": "short",
        },
    )
    quarters = "*/15 * * * *"
    assert done.returncode == 2
    assert done.stdout == ""
    assert sorted(done.stderr.splitlines()) == [
        "AUTH_SECRET must be a random text of at least 32 characters.",
        "LATE_POLICY is 'maybe', but must be hold or current_period.",
        "MAX_POWER_KW is '-1', but must be a number of 0 or more with at most 3 decimals, such as 12.5.",
        "STEVE_API_URL must be an address such as https://example.org.",
        f"SYNC_CRON_SCHEDULE is 'every quarter', but must be a cron schedule of five fields, such as {quarters}.",
        "SYNC_TIMEZONE is 'Berlin', but must be a time zone name such as Europe/Berlin.",
    ]


@pytest.mark.parametrize("folder", ["/proc/ocpp-billing", "/dev/null/data"], ids=["read-only", "no-folder"])
def test_a_data_folder_that_cannot_be_written_is_named(world, folder):
    settings = {**world.environment(), "DATABASE_URL": "", "OCPP_BILLING_DATA_DIR": folder}
    done = run_command("sync", settings=settings)
    assert (done.returncode, done.stdout) == (1, "")
    (sentence,) = done.stderr.splitlines()
    assert folder in sentence
    assert "Choose another folder with OCPP_BILLING_DATA_DIR." in sentence
    assert world.steve.requests == world.lago.requests == []


def test_a_dead_database_is_named(world, tmp_path):
    address = f"postgresql://nobody@/nothing?host={tmp_path}"
    done = run_command("balance", settings={**world.environment(), "DATABASE_URL": address})
    assert done.returncode == 1
    assert "The database cannot be used" in done.stderr
    assert "Check DATABASE_URL, and that PostgreSQL runs" in done.stderr


def test_a_database_that_was_never_set_up_says_what_to_run(world):
    name = f"{connection.settings_dict['NAME']}_empty"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    try:
        address = test_database_url().replace(connection.settings_dict["NAME"], name)
        done = run_command("balance", settings={**world.environment(), "DATABASE_URL": address})
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name}")
    assert done.returncode == 1
    assert "Run: ocpp-billing migrate" in done.stderr


@pytest.mark.parametrize("service", ["web", "up", "demo"])
def test_a_port_that_is_taken_is_named(here, service):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = here(service, "--port", str(port))
    assert (code, out) == (1, "")
    assert f"Port {port}" in err
    assert "is taken. Choose another with --port." in err


@pytest.mark.parametrize("system", ["steve", "lago"])
def test_a_simulators_port_that_is_taken_is_named(here, system):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = here("simulate", system, "--port", str(port))
    assert (code, out) == (1, "")
    assert str(port) in err
    assert "--port" in err


def test_a_recording_that_does_not_exist_is_named(here):
    code, _, err = here("demo", "--once", "--release", "3.8")
    assert code == 2
    assert "There is no recording of 3.8. There are 3.7.1, 3.9.0 and 3.14.1." in err


def test_every_command_explains_itself(capsys):
    def help_of(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--help"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    overview = help_of()
    commands = ["up", "web", "worker", "migrate", "sync", "balance", "go-live", "pause", "resume", "mappings"]
    for name in [*commands, "create-admin", "demo", "simulate"]:
        assert f"\n    {name}" in overview
        assert f"usage: ocpp-billing {name}" in help_of(name)


# -- going live ------------------------------------------------------------------------------------------


def test_going_live_shows_what_would_be_billed_and_asks_first(world, command, here):
    world.payer("TAG-ALICE", "alice")
    world.session("TAG-ALICE", energy_wh=12_345)
    world.sync()
    day = (world.clock.now() - 48 * HOUR).date()
    asked = command("go-live", "--from", str(day))
    assert asked.returncode == 1
    assert "alice (sub-alice): 1 sessions, 12.345 kWh" in asked.stdout
    assert "repeat with --yes" in asked.stderr
    assert not DeliveryControl.objects.exclude(live_from=None).exists()

    code, out, _ = here("go-live", "--from", str(day), "--yes")
    assert code == 0
    assert "Billing is live." in out
    assert DeliveryControl.objects.get().live_from.date() == day
    assert AuditEntry.objects.filter(action="delivery.go_live").get().actor.startswith("command line (")

    code, _, err = here("go-live", "--from", str(day), "--yes")
    assert code == 1
    assert "Billing is already live" in err


def test_going_live_is_refused_while_billing_start_decides(world, here):
    code, _, err = here("go-live", "--from", "2026-01-01", "--yes", billing_start="2026-01-01")
    assert code == 1
    assert "BILLING_START is set in the environment" in err


def test_a_date_that_is_none_is_refused(world, here):
    code, _, err = here("go-live", "--from", "yesterday", "--yes")
    assert code == 2
    assert "--from is 'yesterday', but must be a date such as 2026-12-01" in err


def test_the_date_begins_in_the_zone_of_the_settings(world, here):
    assert here("go-live", "--from", "2026-07-01", "--yes", sync_timezone="Europe/Berlin")[0] == 0
    assert DeliveryControl.objects.get().live_from == datetime(2026, 6, 30, 22, tzinfo=UTC)


def test_pausing_and_resuming(live, here):
    assert here("pause", "--reason", "audit")[0] == 0
    live.session("TAG-ALICE")
    code, out, _ = here("sync")
    assert code == 0
    assert "Delivery is paused" in out
    assert live.posts() == []
    assert here("resume")[1] == "Delivery goes on.\n"
    assert here("resume")[1] == "Delivery was not paused.\n"
    assert here("sync")[0] == 0
    assert live.lago_wh() == 10_000


# -- mappings --------------------------------------------------------------------------------------------

CSV = """\
id_tag,customer_id,subscription_id,valid_from,valid_to,active,note
TAG-ALICE,alice,,2026-01-01,,,
TAG-BOB,bob,sub-bob,2026-01-01T06:00:00+01:00,2026-07-01,true,"van, white"
TAG-CAROL,carol,,2026-01-01,,no,=HYPERLINK("evil")
"""
EXPORTED = """\
id_tag,customer_id,subscription_id,valid_from,valid_to,active,note
TAG-ALICE,alice,,2026-01-01T00:00:00+00:00,,true,
TAG-BOB,bob,sub-bob,2026-01-01T05:00:00+00:00,2026-07-01T00:00:00+00:00,true,"van, white"
TAG-CAROL,carol,,2026-01-01T00:00:00+00:00,,false,"'=HYPERLINK(""evil"")"
"""


def test_mappings_go_in_and_come_out_as_they_were(world, command, here, tmp_path):
    file = tmp_path / "mappings.csv"
    file.write_text(CSV)
    code, out, _ = here("mappings", "import", str(file), "--dry-run")
    assert (code, out) == (0, "3 mappings would be created, 0 unchanged, 0 with errors.\n")
    assert not TagMapping.objects.exists()
    done = command("mappings", "import", "-", stdin=CSV)
    assert (done.returncode, done.stdout) == (0, "3 mappings created, 0 unchanged, 0 with errors.\n")
    exported = command("mappings", "export")
    assert (exported.returncode, exported.stdout) == (0, EXPORTED)
    file.write_text(exported.stdout)
    code, out, _ = here("mappings", "import", str(file))
    assert (code, out) == (0, "0 mappings created, 3 unchanged, 0 with errors.\n")


def test_lines_with_errors_are_named_and_the_others_go_in(world, here, tmp_path):
    file = tmp_path / "mappings.csv"
    file.write_text(
        "id_tag,customer_id,valid_from,valid_to,active\n"
        "TAG-1,alice,2026-01-01,,\n"
        ",alice,2026-01-01,,\n"
        "TAG-2,,2026-01-01,,\n"
        "TAG-3,carol,soon,,\n"
        "TAG-4,dave,,,\n"
        "TAG-5,erin,2026-02-01,2026-01-01,\n"
        "TAG-6,frank,2026-01-01,,perhaps\n"
        "tag-1,bob,2026-06-01,,\n"
        "TAG-7,grace,2026-01-01,,,too,many\n"
        "TAG-8,heidi,2026-01-01,,\n"
    )
    code, out, err = here("mappings", "import", str(file))
    assert (code, out) == (3, "2 mappings created, 0 unchanged, 8 with errors.\n")
    assert [line.partition(":")[0] for line in err.splitlines()] == [f"line {n}" for n in range(3, 11)]
    assert set(TagMapping.objects.values_list("customer_external_id", flat=True)) == {"alice", "heidi"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"tag,customer\nA,b\n", "The first line must name the columns"),
        (b"", "The first line must name the columns"),
        (b"id_tag,customer_id,valid_from\n\xff\xfe,a,2026-01-01\n", "it is not UTF-8 text"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_list_of_mappings_is_refused(world, here, tmp_path, content, sentence):
    file = tmp_path / "mappings.csv"
    if content is not None:
        file.write_bytes(content)
    code, out, err = here("mappings", "import", str(file))
    assert (code, out) == (1, "")
    assert sentence in err


def test_what_comes_by_standard_input_has_to_be_text_too(world, here, monkeypatch):
    content = io.BytesIO(b"id_tag,customer_id,valid_from\n\xff\xfe,a,2026-01-01\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content, encoding="ascii"))
    code, out, err = here("mappings", "import", "-")
    assert (code, out, err) == (1, "", "Standard input cannot be read: it is not UTF-8 text.\n")


def test_a_folder_is_no_file_of_mappings(world, here, tmp_path):
    code, out, err = here("mappings", "import", str(tmp_path))
    assert (code, out, err) == (1, "", f"{tmp_path} cannot be read: Is a directory.\n")


# -- the first admin -------------------------------------------------------------------------------------


def test_the_first_admin_is_made_once_from_the_environment(command):
    admin = {
        "admin_email": "First@Example.org",
        "admin_password": "correct horse battery",
        "admin_name": "First",
    }
    try:
        made = command("create-admin", **admin, auth_url="")
        assert made.returncode == 0, made.stderr
        assert "first@example.org created. Sign in at http://localhost:8000 (AUTH_URL is not" in made.stdout
        before = User.objects.get(email="first@example.org")
        again = command("create-admin", **admin | {"admin_password": "another long password"})
        assert again.returncode == 0
        assert "was there already; nothing was changed" in again.stdout
        after = User.objects.get(email="first@example.org")
        assert (after.password, after.is_admin) == (before.password, True)
        assert after.check_password("correct horse battery")
    finally:
        User.objects.all().delete()


def test_a_letter_of_create_admin_is_sent_before_it_ends(world, command):
    admin = {
        "admin_email": "second@example.org",
        "admin_password": "correct horse battery",
        "admin_name": "2",
    }
    mail = {"email_host": "127.0.0.1", "email_from": "billing@example.org", "email_security": "none"}
    try:
        with mail_server(slow_s=1) as server:
            mail["email_port"] = str(server.server_address[1])
            assert command("create-admin", **admin, **mail).returncode == 0
            assert server.messages == []
            done = command("create-admin", "--reset-password", **admin, **mail)
            assert (done.returncode, done.stderr) == (0, "")
            assert [letter["To"] for letter in server.letters] == ["second@example.org"]
        lost = command("create-admin", "--reset-password", **admin, **mail | {"email_port": "9"})
        assert lost.returncode == 0
        assert "A letter was not sent. 127.0.0.1:9 cannot be reached: Connection refused." in lost.stderr
    finally:
        User.objects.all().delete()


def test_people_come_to_the_port_that_is_listened_on_unless_auth_url_says_otherwise(monkeypatch):
    monkeypatch.setenv("OCPP_BILLING_ENV_FILE", "")
    monkeypatch.delenv("AUTH_URL", raising=False)
    assert people_come_to(9000) == "http://localhost:9000"
    monkeypatch.setenv("AUTH_URL", "https://billing.example.org")
    assert people_come_to(9000) == "https://billing.example.org"


def test_without_a_terminal_create_admin_names_what_it_lacks(here):
    code, _, err = here("create-admin", admin_email="first@example.org", admin_name="First")
    assert code == 2
    assert "ADMIN_PASSWORD is not set" in err


# -- whoever starts it, and in whatever locale -----------------------------------------------------------


def test_mappings_come_out_and_go_in_as_utf8_whatever_the_locale(world, command):
    with_note = "id_tag,customer_id,valid_from,note\nTAG-ALICE,alice,2026-01-01,Käse 🧀\n"
    assert command("mappings", "import", "-", stdin=with_note).returncode == 0
    latin = {"lc_all": "C", "pythoncoerceclocale": "0", "pythonutf8": "0", "pythonioencoding": "latin-1"}
    settings = world.environment() | {"DATABASE_URL": test_database_url()}
    settings |= {name.upper(): value for name, value in latin.items()}
    exported = subprocess.run(
        [*COMMAND, "mappings", "export"], env=environment(settings), capture_output=True, check=True
    ).stdout
    assert "Käse 🧀" in exported.decode()
    TagMapping.objects.all().delete()
    done = subprocess.run(
        [*COMMAND, "mappings", "import", "-"],
        env=environment(settings),
        input=exported,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"1 mappings created, 0 unchanged, 0 with errors.\n")
    assert TagMapping.objects.get().note == "Käse 🧀"


@pytest.mark.parametrize("words", ["balance", "mappings export"])
def test_an_answer_that_cannot_be_written_is_said_so(world, words):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *words.split()],
            env=environment(world.environment() | {"DATABASE_URL": test_database_url()}),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "The answer cannot be written: No space left on device.\n",
    )


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_changes_nothing(world, closed):
    """Else a connection to the database would get its number, and the words that go there."""
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "pause"],
        env=environment(world.environment() | {"DATABASE_URL": test_database_url()}),
        capture_output=True,
        text=True,
        check=False,
    )
    answer = "" if ">&-" in closed.split() else "Delivery is paused. Go on with: ocpp-billing resume\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, answer, "")
    assert DeliveryControl.objects.get().paused_at is not None


# -- simulators, demo, up --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("steve", "--release", "3.9", "--count", "20"), "/_sim/health"),
        (("lago", "--store", "clickhouse"), "/_sim/summary"),
    ],
    ids=["steve", "lago"],
)
def test_a_simulator_serves_until_it_is_told_to_end(tmp_path, arguments, path):
    with running("simulate", *arguments, "--port", "0", settings={}, log=tmp_path / "log") as simulator:
        url = simulator.says("http://127.0.0.1:").split()[-1]
        with urlopen(f"http://{urlsplit(url).netloc}{path}") as answer:
            assert answer.status == 200
        assert simulator.terminate() == 0
    assert "Traceback" not in simulator.said()
