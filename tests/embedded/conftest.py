import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ocpp_billing.embedded.postgres import EmbeddedPostgres
from ocpp_billing.embedded.process import ServerUser, unreachable

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can become another user")


def ordinary_user() -> ServerUser:
    """Somebody who is neither root nor the user made for the server."""
    entry = pwd.getpwnam("nobody")
    return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid, drop=True)


def eventually(condition: Callable[[], Any], within_s: float = 10.0) -> Any:
    """What the condition gives once it is true; fails the test when it stays false."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {within_s} s"
        time.sleep(0.01)
    return value


def alive(pid: int) -> bool:
    """Whether that process runs; a dead one that nobody has reaped does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass
class Owner:
    """A process that was asked to start a server, and what it answered."""

    process: subprocess.Popen[str]
    answer: dict[str, Any]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.communicate(timeout=60)


@dataclass
class Somebody:
    """A user of this machine who can own servers."""

    uid: int
    name: str
    begin: Callable[..., subprocess.Popen[str]]
    own: Callable[..., Owner]


def make_folder() -> Path:
    """A short folder that every user can enter (pytest's own are closed to others), in memory if it fits."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**31
    path = Path(tempfile.mkdtemp(prefix="ocpp-", dir=memory if roomy else None))
    path.chmod(0o711)
    return path


@pytest.fixture
def folder() -> Iterator[Path]:
    path = make_folder()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """A data folder with an empty database, made once."""
    path = make_folder()
    with EmbeddedPostgres(path / "data", settings={"fsync": "off"}):
        pass
    yield path / "data"
    shutil.rmtree(path)


@pytest.fixture
def data(template: Path, folder: Path) -> Path:
    """A copy of the template, for tests that are not about making a database."""
    subprocess.run(["/bin/cp", "-a", str(template), str(folder / "data")], check=True)
    return folder / "data"


@pytest.fixture(params=["ourselves", "ordinary user"])
def somebody(request: pytest.FixtureRequest, folder: Path) -> Iterator[Somebody]:
    """Whoever runs the tests, and for root an ordinary user too; the folder is theirs."""
    uid = os.geteuid()
    argument = "-"
    if request.param == "ordinary user":
        if not ROOT:
            pytest.skip("whoever runs the tests is an ordinary user already")
        user = ordinary_user()
        python = [Path(sys.executable), Path("/usr/bin/python3")]
        if len(unreachable(python, user)) == len(python):
            pytest.skip("no Python is installed where an ordinary user can execute it")
        uid = user.uid
        argument = str(uid)
        os.chown(folder, user.uid, user.gid)
    started: list[subprocess.Popen[str]] = []

    def begin(data_dir: Path, **settings: str) -> subprocess.Popen[str]:
        arguments = [str(data_dir), argument, json.dumps(settings or {"fsync": "off"})]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.embedded.owner", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    def own(data_dir: Path, **settings: str) -> Owner:
        process = begin(data_dir, **settings)
        return Owner(process, json.loads(process.stdout.readline()))

    yield Somebody(uid, pwd.getpwuid(uid).pw_name, begin, own)
    for process in started:
        if process.poll() is None:
            process.communicate(timeout=60)
        else:
            process.stdin.close()
            process.stdout.close()
