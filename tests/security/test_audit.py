"""The audit of dependencies: a known vulnerability fails, and no answer is never taken for a good one."""

from __future__ import annotations

import pytest
from tools.audit_dependencies import KNOWN_NAME, KNOWN_VERSION, ask, read_report, verdict

BAD = {"id": "PYSEC-1", "fix_versions": ["5.2.9"], "aliases": [], "description": "x"}
KNOWN = {"name": KNOWN_NAME, "version": KNOWN_VERSION, "vulns": [BAD]}
SILENT = {"name": KNOWN_NAME, "version": KNOWN_VERSION, "vulns": []}


def clean(name="django"):
    return {"name": name, "version": "5.2.1", "vulns": []}


def unasked(name="django"):
    return {"name": name, "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("dependencies", "code", "says"),
    [
        ([clean(), clean("msgspec"), KNOWN], 0, "2 dependencies audited: no known vulnerability."),
        ([{**clean(), "vulns": [BAD]}, KNOWN], 1, "django 5.2.1: PYSEC-1, mended in 5.2.9"),
        ([{**clean(), "vulns": [BAD]}, unasked("msgspec"), unasked(KNOWN_NAME)], 1, "VULNERABLE"),
        ([clean(), unasked("msgspec"), KNOWN], 0, "1 dependencies were NOT AUDITED: msgspec"),
        ([unasked(), unasked(KNOWN_NAME)], 0, "NOT AUDITED: the vulnerability service"),
        ([clean(), SILENT], 0, "NOT AUDITED: the vulnerability service"),
    ],
)
def test_what_the_service_says_is_told_as_it_is(dependencies, code, says):
    exit_code, text = verdict(read_report({"dependencies": dependencies}))
    assert exit_code == code
    assert says in text


def test_a_machine_without_the_programs_fails_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask(tmp_path) is None


def test_a_uv_of_the_machine_is_taken_where_run_keeps_none(tmp_path, monkeypatch):
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\nexit 3\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask(tmp_path / "elsewhere") is None  # it was asked, and could not tell


def test_no_answer_fails_nothing_and_is_told_loudly():
    code, text = verdict(None)
    assert code == 0
    assert "WARNING" in text
    assert "NOT AUDITED" in text
