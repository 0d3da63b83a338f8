"""What every test can count on, proved by a pytest of its own (:mod:`tests.plugin`)."""

import os
import subprocess
import sys
from pathlib import Path

INNER = """
import os, socket
import pytest

def test_the_developers_settings_are_gone():
    leaked = {"STEVE_API_KEY", "LAGO_API_URL", "SYNC_ON_STARTUP", "LATE_POLICY", "OCPP_BILLING_DATA_DIR"}
    assert not leaked & os.environ.keys()
    assert os.environ["OCPP_BILLING_ENV_FILE"] == ""
    assert len(os.environ["AUTH_SECRET"]) >= 32

def test_the_database_is_the_given_one():
    assert os.environ["DATABASE_URL"] == os.environ["TEST_DATABASE_URL"]

@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_sockets_lead_to_this_machine_only(host):
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="tried to use socket"):
        socket.create_connection((host, 80), timeout=1)

@pytest.mark.filterwarnings("default")
def test_loopback_is_open():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()

@pytest.mark.long
def test_more_of_the_same():
    pass
"""


def run_inner(tmp_path: Path, *arguments: str) -> str:
    (tmp_path / "test_inner.py").write_text(INNER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "STEVE_API_KEY": "a real one",
        "LAGO_API_URL": "https://lago.example.org",
        "SYNC_ON_STARTUP": "true",
        "LATE_POLICY": "hold",
        "OCPP_BILLING_DATA_DIR": "/srv/ocpp",
        "TEST_DATABASE_URL": os.environ["DATABASE_URL"],
    }
    options = ["-c", "pyproject.toml", "-p", "no:cacheprovider", "--rootdir", "."]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_inner.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_environment_is_known_and_closed_and_long_tests_are_skipped_with_their_reason(
    tmp_path: Path,
) -> None:
    printed = run_inner(tmp_path)
    assert "5 passed, 1 skipped" in printed
    assert "takes long: run with --long" in printed


def test_long_tests_run_when_asked_for(tmp_path: Path) -> None:
    assert "6 passed" in run_inner(tmp_path, "--long")
