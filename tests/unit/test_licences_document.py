"""What is said about licences covers everything that is shipped or installed, and is current."""

import re

import pytest
from tools.licences_document import DOCUMENT, FOR_TESTS, SHIPPED, licence_of, locked_packages, vendored

TEXT = DOCUMENT.read_text(encoding="utf-8")
ROWS = dict(re.findall(r"(?m)^\| ([a-z0-9-]+) \| ([^|]+) \| [^|]*\|$", TEXT))
AGAIN = "write it again with: python -m tools.licences_document"


def test_every_package_of_the_lock_file_is_named_and_no_other():
    packages = locked_packages()
    assert {"django", "psycopg-binary", "uvicorn"} <= set(packages)
    assert "pytest" not in packages
    assert {name for name in ROWS if name not in {"package", "axe-core"}} == set(packages), AGAIN


@pytest.mark.parametrize("name", locked_packages())
def test_a_licence_is_what_the_package_says(name):
    said = licence_of(name)
    if said is None:
        pytest.skip(f"{name} is not installed on this machine")
    assert ROWS[name] == said, AGAIN


@pytest.mark.parametrize("path", [SHIPPED, FOR_TESTS], ids=["shipped", "for tests"])
def test_every_vendored_package_is_named_with_its_version(path):
    rows = vendored(path)
    assert rows
    for row in rows:
        assert f"| {row['package']} | {row['version']} | {row['licence']} |" in TEXT, AGAIN
