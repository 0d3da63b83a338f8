"""``./run``, as far as it can be asked without setting anything up."""

import os
import re
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parents[2] / "run"


def test_what_only_leads_to_a_python_is_not_taken_for_one(tmp_path):
    """Else uv takes a shim of pyenv's for another Python, and makes the environment of a running product anew."""
    shim = tmp_path / "python3"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    shim.chmod(0o755)
    function = re.search(r"(?ms)^find_python\(\) \{.*?^\}", RUN.read_text())
    assert function is not None
    found = subprocess.run(
        ["/bin/sh", "-c", f"{function[0]}\nfind_python"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert Path(found).samefile(sys._base_executable)
    assert Path(found) != shim
