"""What is generated from the table of settings is current, and says what the settings are."""

import re
from io import StringIO

import pytest
from dotenv import dotenv_values
from tools.settings_documents import ADMIN, COMPOSE, documents, env_example

from ocpp_billing.config import Config, load_config

GENERATED = documents()


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_the_committed_file_is_current(path):
    assert path.read_text(encoding="utf-8") == GENERATED[path], (
        "write it again with: python -m tools.settings_documents"
    )


def test_the_example_as_it_is_sets_nothing():
    assert dict(dotenv_values(stream=StringIO(env_example()))) == {}


def test_the_example_with_every_line_switched_on_sets_the_defaults():
    switched_on = re.sub(r"(?m)^#(?=[A-Z_]+=)", "", env_example())
    values = dotenv_values(stream=StringIO(switched_on))
    others = {name for name, _ in ADMIN} | {name for name, _, _ in COMPOSE}
    assert set(values) - others == {name.upper() for name in Config.__dataclass_fields__}
    assert others <= set(values)
    assert load_config({"OCPP_BILLING_ENV_FILE": "", **values}) == Config()


def test_every_setting_of_the_example_stands_below_one_line_that_says_what_it_is():
    for block in env_example().split("\n\n"):
        lines = block.strip().splitlines()
        if lines[-1].startswith("#") and "=" in lines[-1] and not lines[-1].startswith("# "):
            assert re.fullmatch(r"# [A-Z].+\.", lines[0])
            assert len(lines) == 2
