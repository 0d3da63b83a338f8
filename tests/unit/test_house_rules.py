"""The rules of this house that a machine can check."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "ocpp_billing"
MODULES = sorted(PACKAGE.rglob("*.py"))
PURE = [
    "billing/rules.py",
    "billing/events.py",
    "billing/failures.py",
    "mappings/resolve.py",
    "lago/contract.py",
    "charging/clocks.py",
    "charging/fold.py",
    "charging/reasons.py",
    "energy.py",
]
# The way of the data, from the ground up: what stands in a line may use what stands above it, and nothing
# below. (The simulators stand aside: see TestSides.)
LAYERS = """
clock config database effects energy http_date local_time log mail proxies remembered request_size schema spreadsheet tls unix_socket
accounts steve
charging
lago
mappings
billing
reconcile
alerts sync
doctor metrics report
api
portal
embedded
commands
asgi cli settings urls
"""
# They stand between the two sides: the command line offers both, the demo joins them.
BETWEEN = {"ocpp_billing.commands.simulate", "ocpp_billing.embedded.demo"}

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))


def module_name(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports(tree, *, for_types=True):
    """Every module that is imported anywhere in a file; ``for_types``: also for annotations only."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node) and not for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, for_types=for_types)


def committed_texts():
    """(path, text) of every text file that git knows."""
    known = subprocess.run(
        ["git", "-C", ROOT, "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    if known.returncode != 0:
        pytest.skip("this is no git checkout")
    for name in filter(None, known.stdout.decode().split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (data := path.read_bytes()):
            yield name, data.decode(errors="replace")


class TestWhatIsCommitted:
    # Put together here, so that this file does not contain them.
    HOSTS = "|".join(
        ["py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.(?:org|com)", "jsdeli" + r"vr\.net"]
    )
    FOLDERS = "|".join("/" + name + "/" for name in ["work", "root", "Users", "tmp/w"])

    def found(self, pattern, *, but=()):
        return [
            f"{name}:{text[: match.start()].count(chr(10)) + 1}: {match[0]}"
            for name, text in committed_texts()
            if name not in but
            for match in re.finditer(pattern, text)
        ]

    def test_names_no_package_registry(self):
        assert self.found(self.HOSTS, but={"uv.lock"}) == []

    def test_names_no_folder_of_somebodys_machine(self):
        # Not after a character that makes it part of an address or of a longer path.
        assert self.found(rf"(?<![\w.:~}}>/-])(?:{self.FOLDERS})[a-z]\w+") == []

    def test_points_at_no_document_that_is_not_here(self):
        assert (
            self.found("fac" + r"ts/(?:steve|lago)|\.\./shar" + "ed|(?:DESIGN|SCENARIOS|PRODUCT)" + r"\.md")
            == []
        )

    def test_holds_no_private_key(self):
        assert self.found("-----BEGIN [A-Z ]*PRIVATE " + "KEY") == []


class TestModules:
    @each_module
    def test_is_not_named_after_what_it_is_not(self, path):
        assert path.stem not in {
            "utils",
            "util",
            "helpers",
            "helper",
            "manager",
            "managers",
            "common",
            "misc",
        }

    @each_module
    def test_says_what_it_is(self, path):
        tree = tree_of(path)
        if tree.body and "migrations" not in path.parts:
            assert ast.get_docstring(tree), "a module begins with a docstring"

    @each_module
    def test_prints_nothing_by_itself(self, path):
        calls = [node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
        assert [call.id for call in calls if isinstance(call, ast.Name) and call.id == "print"] == []


class TestSides:
    """The simulators are worth something only as long as they share nothing with what they test."""

    @each_module
    def test_engine_and_simulators_share_nothing(self, path):
        name = module_name(path)
        if name in BETWEEN:
            return
        ours = {one for one in imports(tree_of(path)) if one.startswith("ocpp_billing.")}
        of_simulators = {one for one in ours if one.startswith("ocpp_billing.simulators")}
        assert (
            ours - of_simulators if name.startswith("ocpp_billing.simulators") else of_simulators
        ) == set()

    def test_those_between_are_still_needed(self):
        for name in BETWEEN:
            path = SOURCE / (name.replace(".", "/") + ".py")
            assert any(one.startswith("ocpp_billing.simulators") for one in imports(tree_of(path))), name


class TestLayers:
    """Whoever reads along the way of the data meets nothing that he has not read yet."""

    LINE_OF = {name: number for number, line in enumerate(LAYERS.split("\n")) for name in line.split()}

    def test_nobody_uses_what_comes_later(self):
        assert [
            f"{module_name(path)} uses {one}"
            for path in MODULES
            for layer in module_name(path).split(".")[1:2]
            if layer != "simulators"
            for one in imports(tree_of(path), for_types=False)
            if one.startswith("ocpp_billing.")
            and self.LINE_OF.get(one.split(".")[1], 0) > self.LINE_OF[layer]
        ] == []

    def test_everything_has_its_place(self):
        there = {module_name(path).split(".")[1] for path in MODULES if path.parent != PACKAGE}
        there |= {path.stem for path in PACKAGE.glob("*.py")}
        assert self.LINE_OF.keys() == there - {"simulators", "__init__"}


class TestPureCore:
    """What decides about money can be asked without a database, a network or a clock."""

    @pytest.mark.parametrize("name", PURE)
    def test_imports_nothing_that_acts(self, name):
        acting = {"django", "psycopg", "httpx2", "time", "random", "secrets", "os", "socket", "threading"}
        acting |= {"ocpp_billing.clock", "ocpp_billing.config", "ocpp_billing.log", "ocpp_billing.effects"}
        for module in imports(tree_of(PACKAGE / name), for_types=False):
            assert not any(module == one or module.startswith(f"{one}.") for one in acting), module

    @pytest.mark.parametrize("name", PURE)
    def test_stands_on_nothing_of_ours_but_the_pure(self, name):
        pure = {module_name(PACKAGE / one) for one in PURE} | {"ocpp_billing.lago.wire"}
        for module in imports(tree_of(PACKAGE / name), for_types=False):
            if module.startswith("ocpp_billing"):
                assert module in pure or module.rpartition(".")[0] in pure, module

    @pytest.mark.parametrize("name", PURE)
    def test_asks_no_clock(self, name):
        calls = [
            ast.unparse(node.func) for node in ast.walk(tree_of(PACKAGE / name)) if isinstance(node, ast.Call)
        ]
        assert [call for call in calls if call.endswith((".now", ".today", ".utcnow"))] == []

    @pytest.mark.parametrize("name", PURE)
    def test_knows_no_float(self, name):
        for node in ast.walk(tree_of(PACKAGE / name)):
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), node.lineno
            assert not (isinstance(node, ast.Name) and node.id == "float"), node.lineno
