"""Every process of a container on a file system that nothing can be written to, as docker-compose.yml has it."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime

import pytest

from ocpp_billing.accounts.models import User
from ocpp_billing.sync.models import SyncRun
from tests.engine.processes import COMMAND, eventually, run_command, running, test_database_url
from tests.security.visitor import Visitor, web_process
from tests.world import forget_people

# Every mount, /tmp included: nothing may need a file. Only devices, and memory that no file names, stay.
READ_ONLY = """
for at in $(awk '{print $2}' /proc/self/mounts | sort -r); do
    case $at in /dev|/dev/*|/proc|/proc/*|/sys|/sys/*) ;; *) mount -o remount,bind,ro "$at" ;; esac
done
exec "$@"
"""
INSTEAD = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", READ_ONLY, "read-only"]


@pytest.fixture
def now():
    """Processes of their own have the machine's clock."""
    return datetime.now(UTC)


@pytest.fixture
def read_only(monkeypatch):
    """Commands run where they can write to no file."""
    if os.geteuid() != 0:
        pytest.skip("only root can make file systems read-only")
    tried = subprocess.run([*INSTEAD, "touch", "here"], capture_output=True, text=True, check=False)
    if "Read-only file system" not in tried.stderr:
        pytest.skip(f"nothing may be mounted here: {tried.stderr.strip()}")
    monkeypatch.setattr("tests.engine.processes.COMMAND", [*INSTEAD, *COMMAND])


@pytest.mark.usefixtures("read_only")
def test_migrations_portal_worker_and_people_need_no_file(world, tmp_path):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    session = world.session("TAG-ALICE")
    settings = world.environment() | {
        "DATABASE_URL": test_database_url(),
        "HOME": "/nonexistent",
        "SYNC_ON_STARTUP": "true",
    }
    admin = {
        "ADMIN_NAME": "Ro",
        "ADMIN_EMAIL": "read-only@example.org",
        "ADMIN_PASSWORD": "a long enough password 1",
    }
    assert run_command("migrate", settings=settings).returncode == 0
    made = run_command("create-admin", settings=settings | admin)
    assert (made.returncode, User.objects.filter(email=admin["ADMIN_EMAIL"]).count()) == (0, 1), made.stderr
    with (
        web_process(settings, tmp_path / "web") as (site, web),
        running("worker", settings=settings, log=tmp_path / "worker") as worker,
    ):
        eventually(lambda: SyncRun.objects.filter(status="completed").exists(), worker.said)
        assert (
            run_command("healthy", "web", "--port", site.rpartition(":")[2], settings=settings).returncode
            == 0
        )
        assert run_command("healthy", "worker", settings=settings).returncode == 0
        visitor = Visitor()
        assert visitor.sign_in(site, admin["ADMIN_EMAIL"], admin["ADMIN_PASSWORD"]) == 302
        assert visitor.ask(f"{site}/")[0] == 200
        assert [web.terminate(), worker.terminate()] == [0, 0]
        assert "Read-only" not in web.said() + worker.said()
    assert world.state_of(session) == ("confirmed", None)
    forget_people()
