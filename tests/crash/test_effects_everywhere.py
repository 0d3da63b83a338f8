"""What the engine does to the outside world, it does within an effect: crashes can be put around all of it.

Read from the source, for what no story comes by; what the stories write is watched while they run.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "ocpp_billing"
PARTS = ("sync", "billing", "charging", "lago", "steve")
MODULES = [
    PACKAGE / "database.py",
    *(path for part in PARTS for path in sorted((PACKAGE / part).glob("*.py"))),
]
WRITING_METHODS = {
    "create",
    "get_or_create",
    "update_or_create",
    "bulk_create",
    "bulk_update",
    "update",
    "delete",
}
WRITES_SQL = re.compile(
    r"\b(INSERT INTO|UPDATE [a-z_]+\b|DELETE FROM|COPY [a-z_]+|TRUNCATE|ANALYZE|pg_notify)"
)
CALLS = {"send", "stream", "urlopen"}


class Reader(ast.NodeVisitor):
    """Reads a module: where it writes or calls, and from where each of its functions is called.

    Attributes:
        outside: function -> what it does outside of an effect, as source.
        called_in: function -> the functions that call it outside of an effect ("" = the module itself).
        called: functions that are called at all.
    """

    def __init__(self, module):
        self.tree = ast.parse(module.read_text(encoding="utf-8"))
        self.outside = defaultdict(list)
        self.called_in = defaultdict(set)
        self.called = set()
        self._constants = {
            node.targets[0].id: ast.unparse(node.value)
            for node in self.tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        self._functions = [""]
        self._depth = 0
        self.visit(self.tree)

    def visit_FunctionDef(self, node):
        depth, self._depth = self._depth, 0
        self._functions.append(node.name)
        self.generic_visit(node)
        self._functions.pop()
        self._depth = depth

    def visit_Lambda(self, node):
        depth, self._depth = self._depth, 0
        self.generic_visit(node)
        self._depth = depth

    def visit_With(self, node):
        for item in node.items:
            self.visit(item)
        inside = any(name_of(item.context_expr) in IN_AN_EFFECT for item in node.items)
        self._depth += inside
        for statement in node.body:
            self.visit(statement)
        self._depth -= inside

    def visit_withitem(self, node):
        # The items of one "with" come one after the other: what follows an effect is within it.
        self.generic_visit(node)

    def visit_Call(self, node):
        name = name_of(node)
        self.called.add(name)
        if self._depth == 0:
            self.called_in[name].add(self._functions[-1])
            if self._acts(node, name):
                self.outside[self._functions[-1]].append(ast.unparse(node))
        self.generic_visit(node)

    def _acts(self, node, name):
        if not isinstance(node.func, ast.Attribute):
            return name in CALLS
        on = ast.unparse(node.func.value)
        if name == "save" or (name in WRITING_METHODS and re.search(r"objects|\.filter\(|\.exclude\(", on)):
            return True
        if name in {"execute", "executemany", "copy"} and node.args:
            given = node.args[0]
            sql = self._constants.get(given.id, "") if isinstance(given, ast.Name) else ast.unparse(given)
            return bool(WRITES_SQL.search(sql))
        return name in CALLS and re.search(r"client|http|server", on) is not None


def name_of(node):
    """The last name of what is called: ``effect`` of ``effects.effect("...")``."""
    called = node.func if isinstance(node, ast.Call) else node
    return getattr(called, "attr", None) or getattr(called, "id", "")


def yields_within_an_effect(function):
    """Whether it is a context manager whose block runs within an effect."""
    if not any("contextmanager" in ast.unparse(decorator) for decorator in function.decorator_list):
        return False
    blocks = [node for node in ast.walk(function) if isinstance(node, ast.With)]
    marked = [node for node in blocks if any(name_of(item.context_expr) == "effect" for item in node.items)]
    return any(isinstance(node, ast.Yield) for block in marked for node in ast.walk(block))


def sources(module):
    """Every function of a module."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


IN_AN_EFFECT = {"effect"} | {
    function.name for module in MODULES for function in sources(module) if yields_within_an_effect(function)
}
READERS = {module: Reader(module) for module in MODULES}


def called_by(function, module):
    """The functions that call this one outside of an effect; a private one is called in its module only."""
    readers = [READERS[module]] if function.startswith("_") else READERS.values()
    if not any(function in reader.called for reader in readers):
        return {("", module)}
    return {
        (caller, other)
        for other, reader in READERS.items()
        if reader in readers
        for caller in reader.called_in[function]
    }


def is_always_within(function, module, seen=()):
    """Whether a function is only ever called within an effect, by whatever way."""
    if (function, module) in seen:
        return True
    return function != "" and all(
        is_always_within(*caller, seen=(*seen, (function, module))) for caller in called_by(function, module)
    )


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_written_or_asked_outside_of_an_effect(module):
    found = {
        function: acts
        for function, acts in READERS[module].outside.items()
        if not is_always_within(function, module)
    }
    assert found == {}


def test_the_reader_finds_what_it_looks_for():
    acts = [act for reader in READERS.values() for acts in reader.outside.values() for act in acts]
    assert len(acts) >= 10  # in functions that are only called within an effect
    assert {"effect", "fenced_transaction"} <= IN_AN_EFFECT
    assert not is_always_within("synchronize", PACKAGE / "sync" / "run.py")
    assert is_always_within("restate_sessions", PACKAGE / "billing" / "outbox.py")
