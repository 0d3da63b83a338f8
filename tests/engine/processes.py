"""The product as real processes: ``ocpp-billing`` with an environment of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

COMMAND = [sys.executable, "-m", "ocpp_billing.cli"]
# Generous: the machine may be busy with other tests.
WITHIN_S = 60.0


def test_database_url() -> str:
    """Address of the test database, for another process."""
    from django.db import connection

    name = connection.settings_dict["NAME"]
    return urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()


test_database_url.__test__ = False  # type: ignore[attr-defined]


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The tests' environment with these settings over it; empty ones count as unset."""
    return {**os.environ, "LOG_FORMAT": "console", **settings}


def run_command(
    *arguments: str, settings: Mapping[str, str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run ``ocpp-billing`` to its end, without a terminal; it must never show a traceback."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(settings),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


class Running:
    """A process in a session of its own, and all that it started."""

    def __init__(self, arguments: list[str], settings: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments],
                env=environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """All that it wrote so far, on both streams."""
        return self._log.read_text()

    def says(self, text: str) -> str:
        """Wait until it has written a text; returns the line with it."""
        eventually(lambda: text in self.said() or self.process.poll() is not None, self.said)
        return next((line for line in self.said().splitlines() if text in line), "") or _fail(self.said())

    def members(self) -> set[int]:
        """Living processes of its session; those of a database server too, which has one of its own."""
        found = set()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z" and int(fields[3]) == self.pid:
                found.add(int(stat.parent.name))
        return found

    def interrupt(self) -> int:
        """Press Ctrl-C: every process in the foreground gets SIGINT. Returns the exit code."""
        os.killpg(self.pid, signal.SIGINT)
        return self.process.wait(WITHIN_S)

    def terminate(self) -> int:
        """Ask it to end; returns the exit code."""
        self.process.terminate()
        return self.process.wait(WITHIN_S)

    def kill(self) -> None:
        """End it without a chance to do anything."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running(*arguments: str, settings: Mapping[str, str], log: Path) -> Iterator[Running]:
    """``ocpp-billing`` in the background; whatever is left of it at the end is killed."""
    started = Running(list(arguments), settings, log)
    try:
        yield started
    finally:
        for pid in started.members():
            os.kill(pid, signal.SIGKILL)
        started.process.wait()


def eventually(condition: Callable[[], Any], explain: Callable[[], str] = str) -> Any:
    """What the condition gives once it is true; fails when it stays false."""
    deadline = time.monotonic() + WITHIN_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {WITHIN_S} s: {explain()}"
        time.sleep(0.05)
    return value


def _fail(text: str) -> str:
    raise AssertionError(text)
