"""The browser for the tests of the portal: ``python tests/chromium.py`` prints where it is, or fails.

The system's Chromium, else the one that ``playwright install chromium`` fetched. A browser that cannot
even say its version (a wrapper without its snap, missing libraries) does not count.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLAYWRIGHTS_NAMES = {"chrome", "headless_shell", "chrome-headless-shell"}

MISSING = "there is no Chromium that works: `./run test` without arguments tries to install one"
# Set by continuous integration, where skipping would hide what is broken.
REQUIRED = bool(os.environ.get("OCPP_BILLING_REQUIRE_BROWSER"))


def candidates() -> Iterator[str]:
    """Programs that may be a browser, the preferred first."""
    yield from filter(None, map(shutil.which, NAMES))
    folder = os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright"
    for path in sorted(Path(folder).glob("chromium*/*/*"), reverse=True):
        if path.name in PLAYWRIGHTS_NAMES and os.access(path, os.X_OK) and path.is_file():
            yield str(path)


def works(program: str) -> bool:
    try:
        said = subprocess.run([program, "--version"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return said.returncode == 0


def find_chromium() -> str | None:
    """The first browser that works, or None."""
    return next(filter(works, candidates()), None)


if __name__ == "__main__":
    found = find_chromium()
    sys.stdout.write(f"{found}\n" if found else "")
    sys.exit(0 if found else MISSING)
