"""The demo and ``up``: the whole product with one command, and nothing left of it afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from ocpp_billing.energy import say_kwh
from tests.engine.processes import eventually, run_command, running

# release: (Wh billed, sessions and kWh by state)
DEMOS = {
    "3.14.1": (118_945, {"held": "2 4.500", "confirmed": "9 118.945", "excluded": "1 0.000"}, 6),
    "3.9.0": (120_445, {"held": "5 10.155", "confirmed": "10 120.445", "excluded": "1 0.000"}, 2),
    "3.7.1": (120_445, {"held": "5 10.155", "confirmed": "10 120.445", "excluded": "1 0.000"}, 2),
}


@pytest.fixture
def data():
    """A data folder of its own, short enough for a socket's path and open to the database's user."""
    folder = Path(tempfile.mkdtemp(prefix="ocpp-demo-"))
    folder.chmod(0o711)
    yield folder / "data"
    eventually(lambda: not processes_naming(str(folder)))
    shutil.rmtree(folder)


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def settings(data):
    return {"DATABASE_URL": "", "OCPP_BILLING_DATA_DIR": str(data)}


def processes_naming(text):
    """Command lines of living processes that name a text, whatever session they are in."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            zombie = "\nState:\tZ" in (folder / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in line and not zombie:
            found.append(line)
    return found


def answers(url):
    try:
        with urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except (URLError, ConnectionError, TimeoutError):
        return ""


@pytest.mark.parametrize("release", list(DEMOS))
def test_the_demo_bills_the_recorded_sessions_and_shows_it(data, release):
    billed_wh, lines, waiting = DEMOS[release]
    done = run_command("demo", "--once", "--release", release, settings=settings(data))
    assert done.returncode == 0, done.stdout + done.stderr
    table = {
        line.split()[0]: " ".join(line.split()[1:])
        for line in done.stdout.splitlines()
        if len(line.split()) == 3
    }
    assert {state: table[state] for state in lines} == lines
    assert int(table["open"].split()[0]) + int(table["stuck"].split()[0]) == waiting
    assert "malformed 0; unexplained 0 sessions, 0.000 kWh" in done.stdout
    assert f"Lago's own ledger counts {say_kwh(billed_wh)} kWh." in done.stdout
    assert processes_naming(str(data)) == []


def test_a_second_demo_begins_anew_and_never_meets_the_systems_that_the_environment_names(data):
    dead = "http://127.0.0.1:9"
    real = {
        "STEVE_API_URL": dead,
        "LAGO_API_URL": dead,
        "LAGO_API_KEY": "real",
        "BILLING_START": "2020-01-01",
    }
    for environment in ({}, real):
        done = run_command("demo", "--once", settings=settings(data) | environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Lago's own ledger counts 118.945 kWh." in done.stdout
    # Where `up` keeps a real ledger nothing is made, and so nothing emptied.
    assert [entry.name for entry in data.iterdir()] == ["demo"]


def test_the_demo_serves_the_portal_until_ctrl_c_and_leaves_no_process(data, port, tmp_path):
    with running("demo", "--port", str(port), settings=settings(data), log=tmp_path / "log") as demo:
        password = demo.says("Password").split()[-1]
        assert re.fullmatch(r"[\w-]{16,}", password)
        assert demo.says("Portal").split()[-1] == f"http://localhost:{port}"
        page = answers(f"http://127.0.0.1:{port}/")  # at once: the address is shown when it can be opened
        assert "csrfmiddlewaretoken" in page  # the sign-in page
        assert len(demo.members()) == 3  # itself, web, worker; the database server leads a session of its own
        assert processes_naming(str(data)) != []
        assert demo.interrupt() == 0
        assert demo.members() == set()
    assert processes_naming(str(data)) == []
    assert "Traceback" not in demo.said()


def test_up_serves_everything_until_ctrl_c_and_leaves_no_process(data, port, tmp_path):
    arguments = ("up", "--port", str(port))
    with running(*arguments, settings=settings(data), log=tmp_path / "log") as up:
        assert "csrfmiddlewaretoken" in eventually(lambda: answers(f"http://127.0.0.1:{port}/"), up.said)
        up.says("worker leads")
        balance = run_command("balance", "--json", settings=settings(data))
        assert json.loads(balance.stdout)["read"] == {"sessions": 0, "energy_wh": 0}
        assert up.interrupt() == 0
        assert up.members() == set()
    assert processes_naming(str(data)) == []
    assert "Traceback" not in up.said()


def test_up_starts_a_database_again_that_ended(data, port, tmp_path):
    arguments = ("up", "--port", str(port))
    with running(*arguments, settings=settings(data), log=tmp_path / "log") as up:
        up.says("worker leads")
        (postgres,) = (data / "postgres-18").glob("postmaster.pid")
        os.kill(int(postgres.read_text().splitlines()[0]), signal.SIGKILL)
        up.says("PostgreSQL ended")
        up.says("PostgreSQL runs again")
        eventually(lambda: up.said().count("worker leads") == 2, up.said)
        done = run_command("balance", "--json", settings=settings(data))
        assert json.loads(done.stdout)["read"] == {"sessions": 0, "energy_wh": 0}
        assert up.interrupt() == 0
    assert processes_naming(str(data)) == []
    assert "Traceback" not in up.said()


@pytest.mark.long
@pytest.mark.parametrize("service", ["web", "worker"])
def test_a_service_by_itself_starts_its_database_again_too(data, port, tmp_path, service):
    arguments = [service, *(["--port", str(port)] if service == "web" else [])]
    alone = settings(data) | {"AUTH_SECRET": "s" * 32}
    with running(*arguments, settings=alone, log=tmp_path / "log") as process:

        def serves(time):
            if service == "web":
                return "csrfmiddlewaretoken" in answers(f"http://127.0.0.1:{port}/")
            return process.said().count("worker leads") == time

        eventually(lambda: serves(1), process.said)
        (postgres,) = (data / "postgres-18").glob("postmaster.pid")
        os.kill(int(postgres.read_text().splitlines()[0]), signal.SIGKILL)
        process.says("PostgreSQL runs again")
        eventually(lambda: serves(2), process.said)
        assert process.terminate() == 0
    eventually(lambda: not processes_naming(str(data)))
    assert "Traceback" not in process.said()


def test_up_killed_outright_leaves_no_process_either(data, port, tmp_path):
    arguments = ("up", "--port", str(port))
    with running(*arguments, settings=settings(data), log=tmp_path / "log") as up:
        up.says("worker leads")
        up.kill()
        eventually(lambda: not up.members())
        eventually(lambda: not processes_naming(str(data)))
