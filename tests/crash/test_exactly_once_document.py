"""The argument for exactly once: every sentence of it names tests, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "explanation" / "exactly-once.md"
SENTENCE = re.compile(r"(?ms)^(\d+)\. (.*?)(?=^\d+\. |^\S|\Z)")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def sentences():
    """(number, text) of each sentence of the argument."""
    return [(int(number), text) for number, text in SENTENCE.findall(DOCUMENT.read_text(encoding="utf-8"))]


def functions_of(path):
    """The functions of a file, also those in classes."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_sentence_names_a_test():
    assert [number for number, _ in sentences()] == list(range(1, len(sentences()) + 1))
    assert len(sentences()) > 10
    assert [number for number, text in sentences() if not NAMED.search(text)] == []


def test_every_named_test_exists():
    named = {match for _, text in sentences() for match in NAMED.findall(text)}
    assert [name for path, name in sorted(named) if name not in functions_of(path)] == []
