"""Child processes that never outlive their owner and never catch a signal meant for somebody else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal

from ocpp_billing.embedded.errors import UnsupportedError

if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence

_LAUNCHER = Path(__file__).with_name("launch.py")


@dataclass(frozen=True, slots=True)
class ServerUser:
    """The operating-system user that PostgreSQL runs as.

    Attributes:
        name: as in the password database; ``peer`` authentication goes by it.
        drop: whether this process is root and has to become that user first.
    """

    name: str
    uid: int
    gid: int
    drop: bool


class Child:
    """A program started by this process; it gets SIGINT when this process dies, however it dies.

    The kernel ties a child to the *thread* that started it, so a thread of its own starts the program
    and lives until the program has ended. The child has a session of its own: a Ctrl-C at the terminal
    reaches the owner alone, who stops things in the right order.

    Args:
        arguments: absolute path of the program, then its arguments.
        user: who it runs as.
    """

    def __init__(self, arguments: Sequence[str], user: ServerUser) -> None:
        self._arguments = launch_command("exec", arguments, user)
        self._output_fd = os.memfd_create("postgres-output")
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.returncode: int | None = None
        try:
            self.pid = self._start()
        except BaseException:
            os.close(self._output_fd)
            raise

    def _start(self) -> int:
        """Start the thread that starts the program; the program's process id.

        Raises:
            UnsupportedError: when the machine has no process left, or no thread.
        """
        started: SimpleQueue[int | BaseException] = SimpleQueue()
        thread = threading.Thread(target=self._keep, args=(started,), name="embedded-postgres", daemon=True)
        try:
            thread.start()
            answer = started.get()
            if isinstance(answer, BaseException):
                raise answer
        except (OSError, RuntimeError) as error:  # the latter is Python's, when no thread can be started
            raise UnsupportedError(f"No process can be started for PostgreSQL: {error}.") from error
        return answer

    def _keep(self, started: SimpleQueue[int | BaseException]) -> None:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own arguments, no shell
                self._arguments,
                cwd="/",
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=self._output_fd,
                stderr=self._output_fd,
                start_new_session=True,
            )
        except BaseException as error:  # noqa: BLE001 - whoever waits for an answer raises it
            started.put(error)
            return
        started.put(process.pid)
        # Until it is reaped its process id cannot become somebody else's; send() relies on that.
        with suppress(ChildProcessError):  # the kernel reaps by itself, where SIGCHLD is ignored
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self.returncode = process.wait()
        self._ended.set()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for its end; its exit code (negative = signal), or None when ``timeout_s`` is over."""
        self._ended.wait(timeout_s)
        return self.returncode

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        with self._lock:
            if self.returncode is None:
                os.kill(self.pid, number)

    def output(self) -> str:
        """What it has written to stdout and stderr, at most the last 64 KiB."""
        size = os.fstat(self._output_fd).st_size
        return os.pread(self._output_fd, 65536, max(0, size - 65536)).decode(errors="replace")

    def close(self) -> None:
        """Forget its output; only after it has ended."""
        os.close(self._output_fd)


def unreachable(paths: Sequence[Path], user: ServerUser) -> list[Path]:
    """Which of these folders (to enter) and programs (to execute) that user cannot get at.

    Asked of the kernel in a process of that user, because mode bits are not the whole truth.

    Raises:
        UnsupportedError: when root may not become another user here.
    """
    command = launch_command("reach", [str(path) for path in paths], user)
    done = subprocess.run(  # noqa: S603 - our own arguments, no shell
        command, cwd="/", env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise UnsupportedError(
            f"PostgreSQL does not run as root, and root may not become the user {user.name} here "
            f"({done.stderr.decode(errors='replace').strip()}). Start this as an ordinary user, or set "
            "DATABASE_URL to a PostgreSQL server."
        )
    printed = {os.fsdecode(line) for line in done.stdout.splitlines()}
    return [path for path in paths if str(path) in printed]


def launch_command(
    mode: Literal["exec", "reach"], arguments: Sequence[str], user: ServerUser | None = None
) -> list[str]:
    """The command line of :mod:`ocpp_billing.embedded.launch`, with this process as the owner.

    Args:
        mode: become a program, or say which paths cannot be reached.
        arguments: the program with its arguments, or the paths.
        user: who does it; None = whoever this process is.
    """
    identity = [str(user.uid), str(user.gid)] if user is not None and user.drop else ["-", "-"]
    return [sys.executable, "-I", "-S", str(_LAUNCHER), mode, str(os.getpid()), *identity, *arguments]


def _environment() -> dict[str, str]:
    """A small fixed environment: PostgreSQL takes defaults from PG*, LC_* and TZ variables otherwise."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
    if "LD_LIBRARY_PATH" in os.environ:  # where libraries have no fixed place (Nix, Guix)
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return environment
