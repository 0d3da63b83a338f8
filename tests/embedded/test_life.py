"""The server lives and dies with its owner, for root and for an ordinary user."""

import dataclasses
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from ocpp_billing.embedded import lock as lock_module
from ocpp_billing.embedded import serverfiles
from ocpp_billing.embedded.lock import Holder, OwnerLock
from ocpp_billing.embedded.postgres import (
    AlreadyRunningError,
    EmbeddedPostgres,
    StartFailedError,
    UnsupportedError,
    running_url,
)
from ocpp_billing.embedded.postmaster import postmaster_status
from ocpp_billing.embedded.process import Child
from tests.embedded.conftest import ROOT, Somebody, alive, eventually, needs_root, ordinary_user

FAST = {"fsync": "off"}


def ask(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchone()[0]


def socket_folder(url: str) -> Path:
    return Path(parse_qs(urlsplit(url).query)["host"][0])


def test_a_server_is_made_and_takes_connections(somebody: Somebody, folder: Path) -> None:
    owner = somebody.own(folder / "data", max_connections="20")
    url = owner.answer["url"]
    assert url.startswith("postgresql://ocpp_billing@/ocpp_billing?host=%2F")
    assert ask(url, "SELECT current_user || ' ' || current_database()") == "ocpp_billing ocpp_billing"
    assert (folder / "data" / "postgres-18" / "PG_VERSION").exists()
    with psycopg.connect(url) as connection:
        database = "SELECT pg_encoding_to_char(encoding), datlocprovider, datlocale FROM pg_database"
        found = connection.execute(f"{database} WHERE datname = 'ocpp_billing'").fetchone()
        assert found == ("UTF8", "b", "C.UTF-8")
        shown = connection.execute(
            "SELECT current_setting('listen_addresses'), current_setting('TimeZone'),"
            " current_setting('fsync'), current_setting('data_checksums'), current_setting('max_connections')"
        ).fetchone()
        assert shown == ("", "UTC", "on", "on", "20")


def test_the_server_never_runs_as_root(somebody: Somebody, folder: Path) -> None:
    owner = somebody.own(folder / "data")
    uid = Path(f"/proc/{owner.answer['pid']}").stat().st_uid
    assert uid != 0
    assert somebody.uid in {0, uid}


def test_the_role_may_create_databases_and_is_no_superuser(data: Path) -> None:
    with EmbeddedPostgres(data, settings=FAST) as postgres:
        rights = "SELECT rolcreatedb AND NOT rolsuper AND NOT rolcreaterole FROM pg_roles"
        assert ask(postgres.url, f"{rights} WHERE rolname = current_user") is True


def test_when_the_owner_is_killed_the_server_goes_and_the_next_start_recovers(
    somebody: Somebody, folder: Path
) -> None:
    owner = somebody.own(folder / "data")
    with psycopg.connect(owner.answer["url"], autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
        owner.kill()
        eventually(lambda: not alive(owner.answer["pid"]), within_s=5)
    assert running_url(folder / "data") is None
    again = somebody.own(folder / "data")
    assert ask(again.answer["url"], "SELECT n FROM kept") == 42


def test_a_start_right_after_the_owner_was_killed_waits_for_the_old_server(
    somebody: Somebody, folder: Path
) -> None:
    owner = somebody.own(folder / "data")
    with psycopg.connect(owner.answer["url"], autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT n FROM generate_series(1, 100000) AS n")
        owner.kill()
        again = somebody.own(folder / "data")  # not a moment later
    assert ask(again.answer["url"], "SELECT count(*) FROM kept") == 100000


def test_a_second_start_on_the_same_folder_names_the_owner(somebody: Somebody, folder: Path) -> None:
    owner = somebody.own(folder / "data")
    second = somebody.own(folder / "data")
    assert second.answer["error"] == "AlreadyRunningError"
    assert f"already run by process {owner.process.pid}." in second.answer["message"]
    assert ask(owner.answer["url"], "SELECT 1") == 1


def test_a_second_start_while_the_first_still_starts_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "_WAIT_S", 0)
    first = OwnerLock(tmp_path / "postgres.lock")
    first.acquire()
    says = f"just being started by process {os.getpid()}. Repeat this when it runs"
    with pytest.raises(AlreadyRunningError, match=re.escape(says)):
        OwnerLock(tmp_path / "postgres.lock").acquire()
    first.publish(Holder(4_711, "postgresql://somewhere"))
    with pytest.raises(AlreadyRunningError, match=r"already run by process 4711\. Use that one, stop it"):
        OwnerLock(tmp_path / "postgres.lock").acquire()
    first.release()


def test_a_second_start_in_the_same_process_is_refused_as_well(data: Path) -> None:
    with EmbeddedPostgres(data, settings=FAST) as postgres:
        with pytest.raises(AlreadyRunningError) as refused:
            EmbeddedPostgres(data, settings=FAST).start()
        assert refused.value.pid == os.getpid()
        assert ask(postgres.url, "SELECT 1") == 1


def test_running_url_is_the_address_while_and_only_while_it_runs(somebody: Somebody, folder: Path) -> None:
    assert running_url(folder / "data") is None
    owner = somebody.own(folder / "data")
    assert running_url(folder / "data") == owner.answer["url"]
    owner.stop()
    assert running_url(folder / "data") is None


def test_stopping_leaves_no_process_and_no_socket(data: Path) -> None:
    postgres = EmbeddedPostgres(data, settings=FAST)
    url = postgres.start()
    pid = postgres.pid
    postgres.stop()
    postgres.stop()
    assert not alive(pid)
    assert not socket_folder(url).exists()
    assert postgres.pid is None
    with pytest.raises(RuntimeError, match="not started"):
        _ = postgres.url


def test_stopping_ends_open_sessions(data: Path) -> None:
    postgres = EmbeddedPostgres(data, settings=FAST)
    with psycopg.connect(postgres.start()) as connection:
        connection.execute("SELECT 1")
        postgres.stop()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_what_was_written_is_there_after_a_restart(data: Path) -> None:
    postgres = EmbeddedPostgres(data, settings=FAST)
    with psycopg.connect(postgres.start()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    postgres.stop()
    assert ask(postgres.start(), "SELECT n FROM kept") == 7
    assert postgres.start() == postgres.url  # a start of what runs does nothing
    postgres.stop()


def test_the_owner_notices_that_the_server_died_and_can_start_it_again(data: Path) -> None:
    with EmbeddedPostgres(data, settings=FAST) as postgres:
        assert postgres.returncode is None
        assert postgres.wait(0.01) is None
        os.kill(postgres.pid, signal.SIGKILL)
        assert postgres.wait(10) == -signal.SIGKILL
        assert postgres.returncode == -signal.SIGKILL
        assert ask(postgres.start(), "SELECT 1") == 1


def test_a_server_that_ended_by_itself_comes_back_at_the_same_address(data: Path) -> None:
    with EmbeddedPostgres(data, settings=FAST) as postgres:
        url = postgres.url
        assert not postgres.ended_by_itself
        os.kill(postgres.pid, signal.SIGKILL)
        postgres.wait(10)
        assert postgres.ended_by_itself
        (damaged := data / "postgres-18" / "global" / "pg_control").rename(data / "aside")
        for _ in range(2):  # it cannot start now, and is tried again
            with pytest.raises(StartFailedError):
                postgres.revive()
            assert postgres.ended_by_itself
        (data / "aside").rename(damaged)
        postgres.revive()
        assert ask(url, "SELECT 1") == 1
        pid = postgres.pid
        postgres.revive()  # nothing to do
        assert (postgres.pid, postgres.ended_by_itself) == (pid, False)
        assert running_url(data) == url
    assert not postgres.ended_by_itself
    assert not socket_folder(url).exists()


def test_a_full_disk_is_named_even_where_the_log_cannot_be_written(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serverfiles, "NEEDED_MB", 1_000_000_000_000)
    (data / "postgres-18" / "global" / "pg_control").unlink()
    with pytest.raises(StartFailedError, match=r"That disk is full: \d+ MB are left\. Make room on it"):
        EmbeddedPostgres(data, settings=FAST).start()


def test_the_thread_that_started_it_may_end(data: Path) -> None:
    postgres = EmbeddedPostgres(data, settings=FAST)
    thread = threading.Thread(target=postgres.start)
    thread.start()
    thread.join()
    assert postgres.wait(0.5) is None
    assert ask(postgres.url, "SELECT 1") == 1
    postgres.stop()


def test_ctrl_c_at_the_terminal_reaches_the_owner_alone(data: Path) -> None:
    with EmbeddedPostgres(data, settings=FAST) as postgres:
        assert os.getsid(postgres.pid) == postgres.pid
        assert os.getsid(postgres.pid) != os.getsid(0)


FORKING_OWNER = """
import os, sys, time
from pathlib import Path
from ocpp_billing.embedded.postgres import EmbeddedPostgres
postgres = EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"})
postgres.start()
if os.fork() == 0:
    postgres.stop()
    print(os.getpid(), flush=True)
    os.close(1)
    time.sleep(60)
    os._exit(0)
sys.stdin.read()
"""


def test_a_forked_copy_of_the_owner_neither_stops_the_server_nor_keeps_the_lock(data: Path) -> None:
    """The copy lives on when the owner is gone; the folder is free all the same."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKING_OWNER, str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        copy = int(owner.stdout.readline())
        try:
            assert ask(running_url(data), "SELECT 1") == 1
            owner.kill()
            owner.wait()
            assert alive(copy)
            with EmbeddedPostgres(data, settings=FAST) as again:
                assert ask(again.url, "SELECT 1") == 1
        finally:
            os.kill(copy, signal.SIGKILL)


def test_the_socket_is_in_a_folder_that_nobody_else_can_enter(somebody: Somebody, folder: Path) -> None:
    owner = somebody.own(folder / "data")
    found = socket_folder(owner.answer["url"]).stat()
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert found.st_uid == Path(f"/proc/{owner.answer['pid']}").stat().st_uid
    names = (folder / "data" / "postgres-ident.conf").read_text()
    assert "peer map=owner" in (folder / "data" / "postgres-hba.conf").read_text()
    assert {line.split()[1] for line in names.splitlines()[1:]} <= {
        '"root"',
        '"ocpp-billing"',
        f'"{somebody.name}"',
    }


STRANGER = """
import os, sys
import psycopg
uid, gid = int(sys.argv[1]), int(sys.argv[2])
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
try:
    psycopg.connect(sys.argv[3]).close()
    print("let in")
except psycopg.Error as error:
    print(error)
"""


def connect_as(uid: int, gid: int, url: str) -> str:
    """What a process of that user is told when it connects."""
    arguments = [sys.executable, "-c", STRANGER, str(uid), str(gid), url]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()


@needs_root
def test_another_user_cannot_connect(data: Path) -> None:
    stranger = ordinary_user()
    with EmbeddedPostgres(data, settings=FAST) as postgres:
        assert "Permission denied" in connect_as(stranger.uid, stranger.gid, postgres.url)
        # Even with both doors open the kernel says who it is.
        run = socket_folder(postgres.url)
        run.chmod(0o755)
        (run / ".s.PGSQL.5432").chmod(0o777)
        for url in (postgres.url, postgres.url.replace("ocpp_billing@", "postgres@")):
            assert "authentication failed" in connect_as(stranger.uid, stranger.gid, url)
        assert connect_as(0, 0, postgres.url) == "let in"


def test_a_stale_process_id_of_somebody_else_is_neither_signalled_nor_in_the_way(
    somebody: Somebody, folder: Path
) -> None:
    """After a reboot the process id of the old server may belong to any process of the same user."""
    owner = somebody.own(folder / "data")
    server_uid = Path(f"/proc/{owner.answer['pid']}").stat().st_uid
    pid_file = folder / "data" / "postgres-18" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    owner.stop()
    change = {"user": server_uid, "group": server_uid, "extra_groups": []} if ROOT else {}
    bystander = subprocess.Popen(["/bin/sleep", "60"], **change)
    try:
        lines[0] = str(bystander.pid)
        pid_file.write_text("\n".join(lines) + "\n")
        os.chown(pid_file, server_uid, -1)
        again = somebody.own(folder / "data")
        assert ask(again.answer["url"], "SELECT 1") == 1
        again.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_server_that_somebody_started_by_hand_is_left_alone(folder: Path) -> None:
    postgres = EmbeddedPostgres(folder / "data", settings=FAST)
    postgres.start()
    postgres.stop()
    place = postgres._place
    quiet = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={place.cluster}"]
    program = str(place.binaries.program("postgres"))
    by_hand = Child([program, "-D", str(place.cluster), *quiet], place.user)
    try:
        eventually(lambda: postmaster_status(place.cluster, by_hand.pid) == "ready")
        with pytest.raises(AlreadyRunningError, match="does not own") as refused:
            postgres.start()
        assert refused.value.pid == by_hand.pid
        assert alive(by_hand.pid)
    finally:
        by_hand.send(signal.SIGINT)
        by_hand.wait(30)
        by_hand.close()


def test_a_start_that_fails_quotes_the_reason_and_leaves_the_folder_free(data: Path) -> None:
    with pytest.raises(StartFailedError, match='invalid value for parameter "shared_buffers"'):
        EmbeddedPostgres(data, settings={**FAST, "shared_buffers": "lots"}).start()
    with EmbeddedPostgres(data, settings=FAST) as postgres:
        assert ask(postgres.url, "SELECT 1") == 1


def test_a_damaged_database_is_told_with_the_words_of_the_log(data: Path) -> None:
    postgres = EmbeddedPostgres(data, settings=FAST)
    postgres.start()
    postgres.stop()
    (data / "postgres-18" / "global" / "pg_control").write_bytes(b"")
    with pytest.raises(StartFailedError, match="pg_control"):
        postgres.start()


def test_settings_of_the_caller_go_before_those_of_the_file_and_the_file_before_ours(data: Path) -> None:
    postgres = EmbeddedPostgres(data, settings={**FAST, "work_mem": "5MB"})
    postgres.start()
    postgres.stop()
    with (data / "postgres-18" / "postgresql.conf").open("a") as file:
        file.write("work_mem = 6MB\nmax_connections = 30\n")
    with postgres:
        assert ask(postgres.url, "SHOW work_mem") == "5MB"
        assert ask(postgres.url, "SHOW max_connections") == "30"


def test_where_it_listens_cannot_be_set(data: Path) -> None:
    with pytest.raises(ValueError, match="listen_addresses"):
        EmbeddedPostgres(data, settings={"listen_addresses": "*"})


def test_variables_meant_for_other_servers_do_not_matter(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGPORT": "6000",
        "PGDATA": "/nowhere",
        "PGHOST": "db.example.org",
        "LC_ALL": "xx_XX.UTF-8",
        "TZ": "Mars/Olympus",
    }.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres(data, settings=FAST) as postgres:
        assert ask(postgres.url, "SHOW TimeZone") == "UTC"


@pytest.mark.parametrize(
    ("broken", "error", "told"),
    [
        ("subprocess.Popen", OSError(11, "Resource temporarily unavailable"), UnsupportedError),
        ("threading.Thread.start", RuntimeError("can't start new thread"), UnsupportedError),
        ("subprocess.Popen", MemoryError("no memory"), MemoryError),
    ],
)
def test_a_program_that_cannot_be_started_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, broken: str, error: Exception, told: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(broken, fail)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(told, match=re.escape(str(error))):
        Child(["/bin/true"], ordinary_user())
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_the_end_of_a_program_is_noticed_where_the_kernel_reaps_by_itself() -> None:
    """A parent may have left SIGCHLD ignored to us."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        child = Child(["/bin/true"], dataclasses.replace(ordinary_user(), drop=False))
        assert child.wait(10) == 0
        child.close()
    finally:
        signal.signal(signal.SIGCHLD, before)
