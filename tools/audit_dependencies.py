"""Look up every dependency of the lock file among known vulnerabilities. Run by ``.ci/run``.

``pip-audit`` asks the package index's own service. It tells a service that knows of nothing from one that
cannot be asked only in part (an index that has no such service, or a mirror that leaves it out, looks like
good news), so one version that is known to be vulnerable is asked about, too.

Exit code 1 for a vulnerability. When the service cannot be asked, that is said loudly and nothing fails: a
build must not depend on it, and the next one asks again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Not one of our dependencies, and known to run what it reads (CVE-2020-1747).
KNOWN_NAME, KNOWN_VERSION = "pyyaml", "5.3"
WITHIN_S = 20


@dataclass(slots=True)
class Audit:
    """What came of it.

    Attributes:
        vulnerable: one sentence per vulnerability.
        unasked: names of dependencies that the service said nothing about.
        asked: how many it was asked about.
        works: whether it told of the one that is known to be vulnerable.
    """

    vulnerable: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    asked: int = 0
    works: bool = False


def read_report(report: dict[str, Any]) -> Audit:
    """What ``pip-audit --format json`` tells."""
    audit = Audit()
    for one in report["dependencies"]:
        found = one.get("vulns", [])
        if one["name"] == KNOWN_NAME:
            audit.works = bool(found)
        elif "skip_reason" in one:
            audit.unasked.append(one["name"])
        else:
            audit.asked += 1
            audit.vulnerable += [
                f"{one['name']} {one['version']}: {each['id']}, mended in "
                f"{', '.join(each['fix_versions']) or 'no version yet'}"
                for each in found
            ]
    return audit


def ask(programs: Path) -> Audit | None:
    """Ask about the locked dependencies of the product, without those of its tests; None = no answer."""
    # ./run keeps a uv beside the other programs only where the machine has none.
    uv = shutil.which("uv", path=f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if uv is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        locked = Path(folder) / "requirements.txt"
        export = [
            uv,
            "export",
            "--frozen",
            "--no-dev",
            "--no-emit-project",
            "--no-hashes",
            "--quiet",
        ]
        made = subprocess.run(  # noqa: S603 - our own arguments
            [*export, "--output-file", locked], cwd=ROOT, check=False, stdout=subprocess.DEVNULL
        )
        if made.returncode:
            return None
        with locked.open("a", encoding="utf-8") as file:
            file.write(f"{KNOWN_NAME}=={KNOWN_VERSION}\n")
        command = [programs / "pip-audit", "--requirement", locked, "--disable-pip", "--no-deps"]
        options = ["--format", "json", "--desc", "off", "--progress-spinner", "off", "--cache-dir", folder]
        try:
            done = subprocess.run(  # noqa: S603 - our own arguments
                [*command, *options, "--timeout", "5"],
                capture_output=True,
                text=True,
                timeout=WITHIN_S,
                check=False,
            )
            return read_report(json.loads(done.stdout))
        except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError):
            return None


def verdict(audit: Audit | None) -> tuple[int, str]:
    """Exit code and what to say."""
    if audit is not None and audit.vulnerable:
        return 1, "VULNERABLE dependencies:\n" + "\n".join(f"  {says}" for says in audit.vulnerable)
    if audit is None or not audit.works:
        return 0, (
            "WARNING: dependencies were NOT AUDITED: the vulnerability service of the package index cannot "
            "be asked from here, or a program for it is missing."
        )
    if audit.unasked:
        return 0, f"WARNING: {len(audit.unasked)} dependencies were NOT AUDITED: {', '.join(audit.unasked)}"
    return 0, f"{audit.asked} dependencies audited: no known vulnerability."


def main() -> int:
    """Ask, and say what came of it."""
    code, says = verdict(ask(Path(sys.executable).parent))
    sys.stdout.write(says + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
