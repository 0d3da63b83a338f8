"""What others wrote (StEvE, Lago, people, headers) ends no log line and steers no terminal."""

from __future__ import annotations

import json
import logging

import pytest

from ocpp_billing.commands.ground import note, out, out_json
from ocpp_billing.log import get_logger, printable
from tests.engine.processes import test_database_url
from tests.security.visitor import Visitor, web_process
from tests.unit.test_log import logged

NASTY = [
    "TAG\n2026-11-26T12:00:00Z [info] everything is billed action=sync.end",
    "TAG\r\nfaked",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31mred",
    "next\x85line",
    "next\u2028line\u2029",
    "\u202etxet",
    "\x00\x7f\x08",
    "half \ud83d",
]


def harmless(text, *, lines):
    assert len(text.splitlines()) == lines, text
    assert all(character.isprintable() or character == "\n" for character in text), repr(text)


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("json_lines", [False, True])
def test_a_log_line_stays_one_line(nasty, json_lines):
    def log():
        get_logger("test").info(
            f"read {nasty}", action="test", tag=nasty, deep={"list": [nasty]}, **{nasty: 1}
        )
        logging.getLogger("django.request").warning("Not Found: %s", nasty)

    text = logged(log, json_lines=json_lines)

    harmless(text, lines=2)
    if json_lines:
        first = json.loads(text.splitlines()[0])
        assert first["tag"] == nasty


@pytest.mark.parametrize("nasty", NASTY)
def test_an_exception_s_words_cannot_be_taken_for_a_line_of_the_log(nasty):
    def log():
        try:
            raise ValueError(nasty)
        except ValueError:
            get_logger("test").exception("failed", action="test")

    first, *traceback = logged(log).rstrip("\n").split("\n")

    assert "failed" in first
    assert traceback
    assert all(line.startswith("  ") for line in traceback)
    harmless("\n".join(traceback), lines=len(traceback))


@pytest.mark.parametrize("nasty", NASTY)
def test_commands_steer_no_terminal(nasty, capsys):
    out(f"Session of {nasty}")
    note(nasty)
    out_json({"tag": nasty})

    answer, beside = capsys.readouterr()
    for text in (answer, beside):
        assert all(character.isprintable() or character == "\n" for character in text), repr(text)
    assert json.loads(answer.splitlines()[-1]) == {"tag": nasty}


def test_each_of_several_web_processes_writes_such_lines(world, tmp_path):
    settings = world.environment() | {"DATABASE_URL": test_database_url(), "LOG_FORMAT": "json"}
    with web_process(settings, tmp_path / "web", "--processes", "2") as (site, web):
        assert Visitor().ask(f"{site}/nowhere%0Afaked")[0] == 404
        assert Visitor().ask(f"{site}/invitation/still-good/")[0] == 404
        web.says("[hidden]")
        refused = [line for line in map(json.loads, web.said().splitlines()) if "Not Found" in line["event"]]

    assert [line["event"] for line in refused] == [
        "Not Found: /nowhere\\nfaked",
        "Not Found: /invitation/[hidden]",
    ]


def test_what_people_write_stays_as_it_is():
    for text in ("Zoë", "日本", "a\tb\nc", "naïve “quoted” €", "👩‍🔧"):
        assert printable(text) == text
