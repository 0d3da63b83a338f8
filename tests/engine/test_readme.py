"""What the README shows of the demo is what the demo prints."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def data():
    """A folder for the demo's database that root's database user can enter, too."""
    folder = Path(tempfile.mkdtemp(prefix="ocpp-readme-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def lasting(text):
    """Without what differs from run to run: how long it took, and how many calls."""
    text = re.sub(r"in [0-9.]+ s:", "in ... s:", text.strip())
    return re.sub(r"\([0-9]+ calls to StEvE, [0-9]+ to Lago\)", "(... calls)", text)


def test_the_readme_shows_what_the_demo_prints(data):
    demo = subprocess.run(
        [sys.executable, "-m", "ocpp_billing.cli", "demo", "--once"],
        env={**os.environ, "DATABASE_URL": "", "OCPP_BILLING_DATA_DIR": str(data)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert demo.returncode == 0, demo.stderr
    shown = re.search(r"```text\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert lasting(demo.stdout) == lasting(shown[1])
