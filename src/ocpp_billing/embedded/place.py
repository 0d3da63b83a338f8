"""Where the embedded database lies, and as which user its server runs.

Normally in ``<data folder>/postgres-<major>``, as the user who started us. PostgreSQL refuses to run as
root, so for root a user of its own is taken; when that user cannot enter the data folder because a parent
is closed (``/root``), the database lies in a folder below ``/var/lib/ocpp-billing``, and a file in the
data folder says where.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ocpp_billing.embedded.binaries import Binaries, copy_binaries
from ocpp_billing.embedded.errors import DataFolderError, UnsupportedError, WrongMajorVersionError
from ocpp_billing.embedded.process import ServerUser, unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

Notice = Callable[[str], None]

SYSTEM_USER = "ocpp-billing"
SYSTEM_FOLDER = Path("/var/lib/ocpp-billing")
LOCATION_FILE = "postgres-location.json"
_OTHER_USERS = ("postgres", "nobody")  # when the system's user list cannot be written
_ROOT = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where the server's files lie and who runs it.

    Attributes:
        home: folder of the database folder, its log and (usually) its socket folder; made by us or given
            by the operator, never writable by the server's user when that is not ourselves.
        user: who the server runs as.
        binaries: programs that this user can execute.
    """

    home: Path
    user: ServerUser
    binaries: Binaries

    @property
    def cluster(self) -> Path:
        """The database folder (``PGDATA``)."""
        return self.home / f"postgres-{self.binaries.major}"


def default_data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """This user's folder for application data.

    Args:
        environ: instead of the environment of this process.

    Raises:
        DataFolderError: this user has no home folder.
    """
    env = os.environ if environ is None else environ
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Application Support" / "ocpp-billing"
        base = Path(env.get("XDG_DATA_HOME", ""))
        return (base if base.is_absolute() else Path.home() / ".local" / "share") / "ocpp-billing"
    except RuntimeError as error:
        raise DataFolderError("This user has no home folder. Set OCPP_BILLING_DATA_DIR.") from error


def make_data_dir(data_dir: Path) -> Path:
    """Make the data folder with what is missing above it; returns it resolved.

    Folders that exist stay as they are. New ones are closed to others; root's can be entered (not listed)
    so that the user who runs the server gets through.

    Raises:
        DataFolderError: when that fails.
    """
    try:
        resolved = data_dir.expanduser().resolve()
        missing = [folder for folder in (resolved, *resolved.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o711 if os.geteuid() == _ROOT else 0o700)
        if not resolved.is_dir():
            raise NotADirectoryError(20, "it is not a folder")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataFolderError(
            f"The data folder {data_dir} cannot be made ({reason}). Choose another folder with "
            "OCPP_BILLING_DATA_DIR."
        ) from error
    return resolved


def find_place(data_dir: Path, binaries: Binaries, notice: Notice) -> Place:
    """Find out where the database of a data folder is or is to be. The caller holds the folder's lock.

    Args:
        data_dir: an existing folder, resolved.
        binaries: those found; the place may have a copy of them.
        notice: is told in a sentence what the operator should know.

    Raises:
        WrongMajorVersionError: a database of another major version is there.
        DataFolderError: the database cannot be reached by the user who has to run it.
        UnsupportedError: no such user.
    """
    home = _remembered_home(data_dir) or data_dir
    check_versions(home, binaries.major)
    cluster = home / f"postgres-{binaries.major}"
    user = _server_user(cluster, notice)
    if not user.drop:
        return Place(home, user, binaries)
    closed = unreachable([*reversed(home.parents), home], user)
    if closed:
        if home != data_dir or cluster.exists():
            raise DataFolderError(
                f"The database in {home} belongs to the user {user.name}, who cannot enter {closed[0]}. Let "
                f"that user in (chmod o+x {closed[0]}), or start this as that user."
            )
        home = _make_system_home(data_dir)
        notice(
            f"The database is kept in {home}: PostgreSQL runs as the user {user.name}, who cannot enter "
            f"{closed[0]}."
        )
    return Place(home, user, _reachable_binaries(binaries, user))


def check_versions(home: Path, major: int) -> None:
    """Refuse a folder whose database was made by another major version, before anything is touched.

    An older folder beside one of our version is what an upgrade leaves behind; a newer one means that
    ours is out of date.

    Raises:
        WrongMajorVersionError: with how to upgrade.
        DataFolderError: the folder is itself a database folder, or ours is damaged.
    """
    if (home / "PG_VERSION").exists():
        raise DataFolderError(
            f"{home} is itself a PostgreSQL database folder. Choose another one with OCPP_BILLING_DATA_DIR."
        )
    names = [re.fullmatch(r"postgres-(\d+)", path.name) for path in home.glob("postgres-*") if path.is_dir()]
    others = sorted(int(name[1]) for name in names if name and int(name[1]) != major)
    cluster = home / f"postgres-{major}"
    if others and (others[-1] > major or not cluster.exists()):
        raise _wrong_major(home / f"postgres-{others[-1]}", str(others[-1]), major)
    try:
        empty = not any(cluster.iterdir())
        version = str(major) if empty else (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        if cluster.exists():
            raise DataFolderError(
                f"{cluster} is not a PostgreSQL database folder, or a damaged one: it has no PG_VERSION. "
                "Restore it from a backup, or move it away to begin with an empty database."
            ) from None
        return
    except OSError as error:
        raise DataFolderError(
            f"The database folder {cluster} cannot be read ({error.strerror}). It belongs to another user: "
            "start this as that user, or choose another folder with OCPP_BILLING_DATA_DIR."
        ) from error
    if version != str(major):
        raise _wrong_major(cluster, version, major)


def _wrong_major(folder: Path, found: str, major: int) -> WrongMajorVersionError:
    if found.isdigit() and int(found) > major:
        return WrongMajorVersionError(
            f"The database in {folder} was made by PostgreSQL {found}, newer than the {major} of this "
            "installation. Install the release of OCPP Billing Sync that made it. Nothing was changed."
        )
    return WrongMajorVersionError(
        f"The database in {folder} was made by PostgreSQL {found}; this installation has {major}, which "
        "cannot read it. Nothing was changed. To upgrade:\n"
        "  1. start the release of OCPP Billing Sync that made it, and dump the database with\n"
        f"     pg_dump --format=custom --file=ocpp_billing.dump (of PostgreSQL {found} or newer);\n"
        f"  2. stop it and move {folder} away, but keep it;\n"
        "  3. start this release once, stop its worker, and load the dump with\n"
        "     pg_restore --clean --if-exists --dbname=ocpp_billing ocpp_billing.dump\n"
        "  4. run 'ocpp-billing migrate', then 'ocpp-billing adopt'."
    )


def _server_user(cluster: Path, notice: Notice) -> ServerUser:
    if os.geteuid() != _ROOT:
        try:
            entry = pwd.getpwuid(os.geteuid())
        except KeyError:
            raise UnsupportedError(
                f"The user id {os.geteuid()} has no name on this machine, and PostgreSQL goes by names. Add "
                "it to /etc/passwd, or set DATABASE_URL to a PostgreSQL server."
            ) from None
        return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid, drop=False)
    if not cluster.exists() or not any(cluster.iterdir()):
        return _system_user(notice)
    owner = cluster.stat().st_uid
    if owner == _ROOT:
        raise DataFolderError(
            f"The database in {cluster} belongs to root, but PostgreSQL does not run as root. Give it back "
            f"to the user it belonged to (chown -R {SYSTEM_USER} {cluster})."
        )
    try:
        entry = pwd.getpwuid(owner)
    except KeyError:
        raise DataFolderError(
            f"The database in {cluster} belongs to the user id {owner}, which has no name on this machine. "
            f"Give it to a user that exists (chown -R {SYSTEM_USER} {cluster})."
        ) from None
    return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid, drop=True)


def _system_user(notice: Notice) -> ServerUser:
    """The user of our own, made when it is missing; where that fails, another one without privileges."""
    existed = _find_user(SYSTEM_USER)
    user = existed or _create_system_user()
    if user is None:
        found = (_find_user(name) for name in _OTHER_USERS)
        user = next((other for other in found if other is not None), None)
        if user is None:
            raise UnsupportedError(
                "PostgreSQL does not run as root, and a user for it cannot be made. Add one (useradd "
                f"--system {SYSTEM_USER}), start this as an ordinary user, or set DATABASE_URL to a "
                "PostgreSQL server."
            )
        notice(f"PostgreSQL runs as the user {user.name}, since the user {SYSTEM_USER} cannot be made here.")
    elif not existed:
        notice(f"The system user {SYSTEM_USER} was made: PostgreSQL does not run as root.")
    return user


def _create_system_user() -> ServerUser | None:
    for command in (
        ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"],
        ["adduser", "--system", "--group", "--no-create-home", "--home", "/nonexistent"],
    ):
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        program = shutil.which(command[0], path=path)
        if program is None:
            continue
        arguments = [program, *command[1:], "--shell", "/usr/sbin/nologin", SYSTEM_USER]
        for _ in range(10):
            subprocess.run(  # noqa: S603 - fixed arguments
                arguments, stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
            user = _find_user(SYSTEM_USER)
            if user is not None:
                return user
            if not Path("/etc/passwd.lock").exists():
                break
            time.sleep(0.1)  # another one is writing the list of users, perhaps this very user
    return None


def _find_user(name: str) -> ServerUser | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return None if entry.pw_uid == _ROOT else ServerUser(name, entry.pw_uid, entry.pw_gid, drop=True)


def _reachable_binaries(binaries: Binaries, user: ServerUser) -> Binaries:
    programs = [*reversed(binaries.folder.parents), binaries.program("postgres"), binaries.program("initdb")]
    closed = unreachable(programs, user)
    if not closed:
        return binaries
    if binaries.package is None:
        raise UnsupportedError(
            f"The user {user.name}, who runs PostgreSQL because root may not, cannot get at {closed[0]}. Set "
            "OCPP_BILLING_PG_BIN to a folder that every user can reach."
        )
    return copy_binaries(binaries, _make_system_folder())


def _make_system_folder() -> Path:
    """``/var/lib/ocpp-billing``: root's, to be entered by all, and checked to be so."""
    try:
        if not SYSTEM_FOLDER.exists():
            SYSTEM_FOLDER.mkdir(exist_ok=True)
            SYSTEM_FOLDER.chmod(0o711)
        found = SYSTEM_FOLDER.lstat()
    except OSError as error:
        raise DataFolderError(
            f"{SYSTEM_FOLDER} cannot be made ({error.strerror}), and the data folder or the programs are "
            "closed to the user who runs PostgreSQL. Choose an open folder with OCPP_BILLING_DATA_DIR, start "
            "this as an ordinary user, or set DATABASE_URL."
        ) from error
    if not SYSTEM_FOLDER.is_dir() or found.st_uid != _ROOT or found.st_mode & 0o022:
        raise DataFolderError(
            f"{SYSTEM_FOLDER} must be a folder that only root can write (chown root: {SYSTEM_FOLDER}; "
            f"chmod go-w {SYSTEM_FOLDER})."
        )
    return SYSTEM_FOLDER


def _make_system_home(data_dir: Path) -> Path:
    """A new folder below the system folder for this data folder, and the file that remembers it.

    The name carries a random part: a data folder that was deleted and made again at the same path begins
    with an empty database, as it would have inside the folder.
    """
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    home = _make_system_folder() / f"{digest}-{secrets.token_hex(4)}"
    try:
        home.mkdir()
        home.chmod(0o711)
        (home / "data-folder.json").write_text(json.dumps({"data_folder": str(data_dir)}) + "\n")
        (data_dir / LOCATION_FILE).write_text(json.dumps({"database_home": str(home)}) + "\n")
    except OSError as error:
        raise DataFolderError(f"{home} cannot be made ({error.strerror}).") from error
    return home


def _remembered_home(data_dir: Path) -> Path | None:
    """Where the database of this data folder was put, when it is not inside.

    Raises:
        DataFolderError: it is gone, or belongs to another data folder that this one is a copy of.
    """
    location = data_dir / LOCATION_FILE
    try:
        home = Path(json.loads(location.read_text())["database_home"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFolderError(f"{location} cannot be read ({error}). Restore it from a backup.") from error
    try:
        owner = Path(json.loads((home / "data-folder.json").read_text())["data_folder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFolderError(
            f"The database of {data_dir} was kept in {home}, which cannot be read ({error}). Restore it from "
            f"a backup, or delete {location} to begin with an empty database."
        ) from error
    if owner != data_dir and (owner / LOCATION_FILE).exists():
        raise DataFolderError(
            f"{data_dir} is a copy of {owner}, and the database in {home} belongs to that one. Delete "
            f"{location} to begin with an empty database here."
        )
    return home
