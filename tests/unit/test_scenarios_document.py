"""The table of scenarios names tests that exist, and every test that carries a number."""

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reference" / "scenarios.md"
ROWS = {
    int(number): re.findall(r"`(tests/[\w/]+\.py)::([\w*]+)`", proofs)
    for number, proofs in re.findall(r"(?m)^\| (\d+) \| .+ \| (.+) \|$", DOCUMENT.read_text(encoding="utf-8"))
}


def names_in(path):
    """Names of the test functions of a file, those in classes too."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def numbers_of(name):
    """The rows that a test claims to prove: test_row_14_30_a_stop_... -> 14, 30."""
    claimed = re.match(r"test_row((?:_\d+)+)_", name)
    return [int(number) for number in claimed[1].strip("_").split("_")] if claimed else []


def test_every_row_is_there():
    assert list(ROWS) == list(range(1, 43))


@pytest.mark.parametrize("number", ROWS)
def test_what_a_row_names_exists(number):
    assert ROWS[number]
    for path, pattern in ROWS[number]:
        assert any(fnmatchcase(name, pattern) for name in names_in(ROOT / path)), f"{path}::{pattern}"


def test_a_test_with_a_number_stands_in_the_row_of_that_number():
    numbered = [
        (str(path.relative_to(ROOT)), name, number)
        for path in sorted((ROOT / "tests").rglob("test_scenarios_*.py"))
        for name in names_in(path)
        for number in numbers_of(name)
    ]
    assert len(numbered) > 80
    for path, name, number in numbered:
        assert any(path == named and fnmatchcase(name, pattern) for named, pattern in ROWS[number]), name
