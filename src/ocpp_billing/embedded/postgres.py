"""A PostgreSQL server that lives and dies with the process that needs it.

Used whenever no ``DATABASE_URL`` is given. ``postgres`` runs as a direct child, so there is nothing to
find again and nobody else's process to hit; the kernel tells it when its owner dies. It listens on a Unix
socket in a folder of mode 0700 only, and lets in, by ``peer`` authentication, its owner and root.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import psycopg

from ocpp_billing.embedded.binaries import find_binaries
from ocpp_billing.embedded.errors import (
    AlreadyRunningError,
    DataFolderError,
    EmbeddedPostgresError,
    StartFailedError,
    UnsupportedError,
    WrongMajorVersionError,
)
from ocpp_billing.embedded.lock import Holder, OwnerLock, read_holder
from ocpp_billing.embedded.place import Place, default_data_dir, find_place, make_data_dir
from ocpp_billing.embedded.postmaster import clear_foreign_pid_file, postmaster_on, postmaster_status
from ocpp_billing.embedded.process import Child
from ocpp_billing.embedded.serverfiles import (
    LOG_FILE_LIMIT_MB,
    PORT,
    cannot_write,
    clear_socket_folder,
    clear_unfinished,
    keep_log_small,
    log_tail,
    make_log_folder,
    make_private_folder,
    make_socket_folder,
    say_no_room,
    sync_folder,
    write_access_files,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

__all__ = [
    "AlreadyRunningError",
    "DataFolderError",
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "StartFailedError",
    "UnsupportedError",
    "WrongMajorVersionError",
    "default_data_dir",
    "make_data_dir",
    "running_url",
]

DATABASE = "ocpp_billing"
ROLE = "ocpp_billing"
SUPERUSER = "postgres"
LOCK_FILE = "postgres.lock"

_POLL_S = 0.005
_SLOW_S = 2.0  # after that a person wants to know what is going on
_START_TIMEOUT_S = 600.0  # replaying the log after a power cut takes what it takes
_PREDECESSOR_TIMEOUT_S = 60.0
_FAST_SHUTDOWN_S = 60.0
_IMMEDIATE_SHUTDOWN_S = 10.0

# Written to postgresql.conf when the database is made: the operator may change them there.
_INITIAL_SETTINGS = {
    "shared_buffers": "128MB",
    "max_connections": "100",
    "wal_compression": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class EmbeddedPostgres:
    """A PostgreSQL server on a data folder, owned by this process.

    Args:
        data_dir: made when missing. The database lies in ``postgres-<major>`` inside, except where root's
            server user cannot get there (:mod:`ocpp_billing.embedded.place`).
        settings: PostgreSQL settings that go before those of postgresql.conf, such as
            ``{"fsync": "off"}``. Where it listens, who gets in and where it logs cannot be set.
        notice: is told, in a sentence each, what the operator should know: another user, another place,
            a wait of more than two seconds.
        binaries_dir: PostgreSQL's programs instead of the wheel's.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        settings: Mapping[str, str] | None = None,
        notice: Callable[[str], None] | None = None,
        binaries_dir: Path | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._settings = dict(settings or {})
        self._notice = notice or (lambda _sentence: None)
        self._binaries_dir = binaries_dir
        self._owner_pid = 0
        self._lock: OwnerLock | None = None
        self._place: Place | None = None
        self._socket_folder: Path | None = None
        self._child: Child | None = None
        self._url: str | None = None
        taken = _OUR_SETTINGS & self._settings.keys()
        if taken:
            raise ValueError(f"these settings are not free: {', '.join(sorted(taken))}")

    # -- what a caller wants to know -----------------------------------------------------------

    @property
    def url(self) -> str:
        """Address of the database, for libpq and Django.

        Raises:
            RuntimeError: it is not started.
        """
        if self._url is None:
            raise RuntimeError("the embedded PostgreSQL is not started")
        return self._url

    @property
    def pid(self) -> int | None:
        """Process id of the server while this process owns one."""
        return self._child.pid if self._child else None

    @property
    def home(self) -> Path | None:
        """The folder where the database, its log and its socket lie, once started."""
        return self._place.home if self._place else None

    @property
    def returncode(self) -> int | None:
        """Exit code of a server that ended by itself (negative = signal); None while it runs."""
        return self._child.returncode if self._child else None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the server ends, for whatever reason; its exit code, or None when time is over."""
        return self._child.wait(timeout_s) if self._child else None

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> str:
        """Start the server, making the database first where there is none; returns :attr:`url`.

        Does nothing when it runs already. Leaves nothing behind when it fails.

        Raises:
            EmbeddedPostgresError: one of the kinds in :mod:`ocpp_billing.embedded.errors`.
        """
        if self._url is not None and self.returncode is None:
            return self._url
        self.stop()
        try:
            return self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def ended_by_itself(self) -> bool:
        """Whether it was started, was not stopped, and does not run: a full disk or a kill ended it."""
        return self._url is not None and (self._child is None or self._child.returncode is not None)

    def revive(self) -> None:
        """Start a server again that ended by itself; :attr:`url` and the hold on the folder stay.

        Does nothing while it runs, or when it is not started.

        Raises:
            EmbeddedPostgresError: it does not start now; it may later, when the cause is mended.
        """
        place, folder = self._place, self._socket_folder
        if not self.ended_by_itself or place is None or folder is None:
            return
        if self._child is not None:
            self._child.close()
            self._child = None
        self._await_predecessor(place)
        clear_foreign_pid_file(place.cluster)
        self._run(place, folder)

    def stop(self) -> None:
        """Shut the server down and let go of the data folder; does nothing when there is none.

        Sessions are ended and everything is written out (fast shutdown); when that takes more than a
        minute, it is stopped at once and recovers at the next start. In a forked copy of the owner it
        does nothing.
        """
        if self._owner_pid != os.getpid():
            return
        if self._child is not None:
            _end(self._child)
            self._child.close()
        if self._socket_folder is not None and self._place is not None:
            clear_socket_folder(self._socket_folder, self._place.user)
        if self._lock is not None:
            self._lock.release()
        self._child = self._socket_folder = self._lock = self._url = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- steps of the start --------------------------------------------------------------------

    def _start(self) -> str:
        self._owner_pid = os.getpid()
        binaries = find_binaries(self._binaries_dir)
        data_dir = make_data_dir(self._data_dir)
        lock = OwnerLock(data_dir / LOCK_FILE)
        left_behind = lock.acquire()
        self._lock = lock
        place = self._place = find_place(data_dir, binaries, self._notice)
        self._await_predecessor(place)
        if left_behind is not None and left_behind.socket_folder is not None:
            clear_socket_folder(Path(left_behind.socket_folder), place.user)
        clear_unfinished(place)
        if not place.cluster.exists() or not any(place.cluster.iterdir()):
            self._make_cluster(place)
        clear_foreign_pid_file(place.cluster)
        folder = self._socket_folder = make_socket_folder(place)
        lock.publish(Holder(os.getpid(), socket_folder=str(folder)))
        self._run(place, folder)
        _ensure_database(folder)
        # The port is said because libpq would take another one from PGPORT.
        self._url = f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(folder), safe='')}&port={PORT}"
        lock.publish(Holder(os.getpid(), self._url, str(folder)))
        return self._url

    def _await_predecessor(self, place: Place) -> None:
        """Wait for a server whose owner was killed: it is on its way out; it is not ours to signal."""
        began = time.monotonic()
        told = False
        while (pid := postmaster_on(place.cluster)) is not None:
            waited_s = time.monotonic() - began
            leaving = postmaster_status(place.cluster, pid) == "stopping"
            if waited_s > (_PREDECESSOR_TIMEOUT_S if leaving else _SLOW_S):
                raise AlreadyRunningError(
                    f"A PostgreSQL server that this program does not own (process {pid}) runs on "
                    f"{place.cluster}. Stop it first, or choose another folder with OCPP_BILLING_DATA_DIR.",
                    pid,
                )
            if waited_s > _SLOW_S and not told:
                told = True
                self._notice(f"Waiting for the PostgreSQL server of before (process {pid}) to end.")
            time.sleep(_POLL_S)

    def _make_cluster(self, place: Place) -> None:
        """Run initdb beside the final place and rename: what has the final name is complete."""
        unfinished = place.home / f"{place.cluster.name}.new-{secrets.token_hex(4)}"
        durable = self._settings.get("fsync", "on") != "off"
        arguments = [
            str(place.binaries.program("initdb")),
            f"--pgdata={unfinished}",
            f"--username={SUPERUSER}",
            "--auth=peer",
            "--encoding=UTF8",
            "--no-locale",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--data-checksums",
            "--no-instructions",
            *([] if durable else ["--no-sync"]),
            *(f"--set={name}={value}" for name, value in _INITIAL_SETTINGS.items()),
        ]
        try:
            make_private_folder(unfinished, place.user)
            code, output = _run_to_end(arguments, place)
            if code != 0:
                raise StartFailedError(
                    f"The database could not be made in {place.home}: {_reason_in(output)}. Nothing was left "
                    "behind; put it right and start again, or choose another folder with "
                    "OCPP_BILLING_DATA_DIR."
                )
            unfinished.rename(place.cluster)
            if durable:
                sync_folder(place.home)
        except OSError as error:
            raise cannot_write(place.home, error) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _run(self, place: Place, socket_folder: Path) -> None:
        """Start ``postgres`` and wait until it takes connections."""
        try:
            log_folder = make_log_folder(place)
            access_files = write_access_files(place)
        except OSError as error:
            raise cannot_write(place.home, error) from error
        arguments = [str(place.binaries.program("postgres")), "-D", str(place.cluster)]
        ours = _our_settings(socket_folder, access_files, log_folder)
        for name, value in {**self._settings, **ours}.items():
            arguments += ["-c", f"{name}={value}"]
        retry_until = time.monotonic() + _IMMEDIATE_SHUTDOWN_S
        while True:
            began = time.time()
            child = self._child = Child(arguments, place.user)
            if self._await_ready(child, place):
                break
            _end(child)
            output = child.output() + log_tail(log_folder, since=began)
            child.close()
            self._child = None
            # Backends of a server that was killed need a moment to notice; they hold its shared memory.
            if "shared memory block" not in output or time.monotonic() > retry_until:
                raise StartFailedError(
                    f"PostgreSQL did not start on {place.cluster}: {_reason_in(output)}. Its log is in "
                    f"{log_folder}.{say_no_room(place.home)}"
                )
            time.sleep(0.1)
        threading.Thread(
            target=keep_log_small, args=(child, log_folder), name="embedded-postgres-log", daemon=True
        ).start()

    def _await_ready(self, child: Child, place: Place) -> bool:
        """Wait until the server takes connections; False when it has ended or takes for ever."""
        began = time.monotonic()
        told = False
        while child.wait(_POLL_S) is None:
            if postmaster_status(place.cluster, child.pid) == "ready":
                return True
            waited_s = time.monotonic() - began
            if waited_s > _SLOW_S and not told:
                told = True
                self._notice("PostgreSQL is still starting; after a power cut or a crash it repairs itself.")
            if waited_s > _START_TIMEOUT_S:
                return False
        return False


def running_url(data_dir: Path) -> str | None:
    """Address of the server that a process runs on that data folder right now; None when there is none.

    Also None while it is starting, and for a user who may not connect to it.
    """
    try:
        resolved = data_dir.expanduser().resolve()
    except (OSError, RuntimeError):
        return None
    holder = read_holder(resolved / LOCK_FILE)
    return holder.url if holder else None


def _our_settings(socket_folder: Path, access_files: tuple[Path, Path], log_folder: Path) -> dict[str, str]:
    """Settings that go with how we run it; they go before postgresql.conf and before the caller's."""
    hba, ident = access_files
    doubled = str(socket_folder).replace('"', '""')  # the setting is a list with quoting of its own
    return {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": f'"{doubled}"',
        "unix_socket_permissions": "0700",
        "hba_file": str(hba),
        "ident_file": str(ident),
        "logging_collector": "on",
        "log_destination": "stderr",
        "log_directory": str(log_folder),
        "log_filename": "postgres-%Y%m%d-%H%M%S.log",
        "log_file_mode": "0600",
        "log_rotation_age": "1d",
        "log_rotation_size": f"{LOG_FILE_LIMIT_MB}MB",
        "log_truncate_on_rotation": "off",
        "cluster_name": "ocpp-billing",
    }


_OUR_SETTINGS = _our_settings(Path("/"), (Path("/"), Path("/")), Path("/")).keys()


def _run_to_end(arguments: list[str], place: Place) -> tuple[int | None, str]:
    """Run a program as the server's user; its exit code and what it wrote."""
    child = Child(arguments, place.user)
    try:
        code = child.wait()
        return code, child.output()
    finally:
        _end(child)  # an interrupt of ours must not leave it at work
        child.close()


def _end(child: Child) -> None:
    """End a child of ours: fast shutdown, then at once, then for good."""
    for number, patience_s in (
        (signal.SIGINT, _FAST_SHUTDOWN_S),
        (signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_S),
        (signal.SIGKILL, None),
    ):
        if child.returncode is not None:
            return
        child.send(number)
        child.wait(patience_s)


def _reason_in(output: str) -> str:
    """The line that says why, of what initdb or postgres wrote."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for mark in ("PANIC:", "FATAL:", "error:", "ERROR:"):
        for line in lines:
            if mark in line:
                return line.partition(mark)[2].strip().rstrip(".")
    return lines[-1].rstrip(".") if lines else "it ended without a word"


def _ensure_database(socket_folder: Path) -> None:
    """Make role and database where they are missing: a start may have been cut off before it did."""
    try:
        with psycopg.connect(
            host=str(socket_folder), port=PORT, user=SUPERUSER, dbname="postgres", autocommit=True
        ) as connection:
            if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).fetchall():
                connection.execute(f"CREATE ROLE {ROLE} LOGIN CREATEDB")
            # Where the database lies: whose disk is nearly full wants to know before it is.
            connection.execute(f"GRANT pg_read_all_settings TO {ROLE}")
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchall():
                connection.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
    except psycopg.Error as error:
        raise StartFailedError(f"PostgreSQL started, but its database cannot be made: {error}.") from error
