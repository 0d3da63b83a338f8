"""What was taken from others is exactly what the lists say."""

import hashlib
import json
from pathlib import Path

import pytest

import ocpp_billing.portal

SHIPPED = Path(ocpp_billing.portal.__file__).parent / "static" / "vendor"
FOR_TESTS = Path(__file__).parent / "vendor"


@pytest.mark.parametrize("folder", [SHIPPED, FOR_TESTS], ids=["shipped", "for tests"])
class TestVendored:
    def test_every_file_has_the_hash_it_was_taken_with(self, folder):
        for row in json.loads((folder / "VENDORED.json").read_text()):
            data = (folder / row["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == row["sha256"], row["file"]

    def test_nothing_lies_there_that_is_not_listed(self, folder):
        listed = {row["file"] for row in json.loads((folder / "VENDORED.json").read_text())}
        there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert there == listed | {"VENDORED.json"}

    def test_every_package_comes_with_its_licence(self, folder):
        rows = json.loads((folder / "VENDORED.json").read_text())
        with_licence = {row["package"] for row in rows if Path(row["file"]).name == "LICENSE"}
        assert with_licence == {row["package"] for row in rows}
        assert all(row["licence"] and row["version"] in row["file"] for row in rows)


def test_no_file_of_the_portal_asks_for_a_source_map_or_a_foreign_address():
    for path in SHIPPED.parent.rglob("*"):
        if path.suffix in {".css", ".js"}:
            text = path.read_text(encoding="utf-8")
            assert "sourceMappingURL" not in text, path
            assert "@import" not in text, path
            assert "url(http" not in text.replace("'", "").replace('"', ""), path
