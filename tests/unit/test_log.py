"""What a log line looks like, and that no secret is in it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ocpp_billing.log import configure_logging, get_logger, hide_secrets

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET_NAMES = [
    "secret",
    "auth_secret",
    "AUTH_SECRET",
    "webhook_secret",
    "password",
    "ADMIN_PASSWORD",
    "passwd",
    "lago_api_key",
    "STEVE-API-KEY",
    "apiKey",
    "token",
    "access_token",
    "csrftoken",
    "Authorization",
    "proxy-authorization",
    "cookie",
    "Set-Cookie",
    "credentials",
    "database_url",
]


class TestHideSecrets:
    @pytest.mark.parametrize("name", SECRET_NAMES)
    def test_a_field_that_speaks_of_a_secret_is_hidden(self, name):
        assert hide_secrets(None, "info", {name: "hunter2"}) == {name: "[hidden]"}

    @pytest.mark.parametrize(
        "name",
        [
            "event",
            "action",
            "customer",
            "transaction_id",
            "energy_wh",
            "error",
            "key",
            "id_tag_last4",
            "author",
        ],
    )
    def test_any_other_field_is_shown(self, name):
        assert hide_secrets(None, "info", {name: "shown"}) == {name: "shown"}

    @pytest.mark.parametrize("name", SECRET_NAMES)
    def test_so_is_one_deep_within(self, name):
        event = {
            "request": {"headers": [{name: "hunter2", "Accept": "json"}], "pair": ({name: "hunter2"}, 1)}
        }
        assert hide_secrets(None, "info", event) == {
            "request": {"headers": [{name: "[hidden]", "Accept": "json"}], "pair": ({name: "[hidden]"}, 1)}
        }

    def test_a_whole_structure_under_such_a_name_is_hidden(self):
        assert hide_secrets(None, "info", {"tokens": {"first": "hunter2"}}) == {"tokens": "[hidden]"}

    @pytest.mark.parametrize("address", ["/invitation/", "/accounts/password/reset/key/"])
    def test_so_is_the_end_of_an_address_that_lets_in_whoever_has_it(self, address):
        event = {"event": f"Not Found: {address}hunter2:x-y/", "urls": [f"{address}hunter2?next=/ here"]}
        assert hide_secrets(None, "info", event) == {
            "event": f"Not Found: {address}[hidden]",
            "urls": [f"{address}[hidden]?next=/ here"],
        }

    def test_what_was_logged_is_not_changed(self):
        event = {"headers": {"cookie": "hunter2"}}
        hide_secrets(None, "info", event)
        assert event == {"headers": {"cookie": "hunter2"}}

    @given(
        st.recursive(
            st.one_of(st.integers(), st.text(), st.none(), st.booleans()),
            lambda inner: st.one_of(
                st.lists(inner), st.tuples(inner), st.dictionaries(st.text("abcxyz_ 1"), inner)
            ),
        )
    )
    def test_what_speaks_of_no_secret_stays_as_it_is(self, value):
        assert hide_secrets(None, "info", {"value": value}) == {"value": value}


def logged(act: Callable[[], object], **settings: Any) -> str:
    """What goes to standard error; logging is one per process, and is given back as it was."""
    root = logging.getLogger()
    named = [root, *map(logging.getLogger, ("httpx2", "httpcore2", "uvicorn.access"))]
    levels, handlers, before = [logger.level for logger in named], root.handlers[:], structlog.get_config()
    with contextlib.redirect_stderr(io.StringIO()) as written:
        try:
            configure_logging(**settings)
            act()
        finally:
            root.handlers[:] = handlers
            for logger, level in zip(named, levels, strict=True):
                logger.setLevel(level)
            structlog.configure(**before)
    return written.getvalue()


def lines(act: Callable[[], object], **settings: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(act, json_lines=True, **settings).splitlines()]


def fail_with_a_secret_at_hand() -> None:
    password = "".join(reversed("2retnuh"))  # so that it is in no line of the source
    try:
        int(f"{len(password)}!")
    except ValueError:
        get_logger("test").exception("failed", action="test")


class TestJsonLines:
    def test_a_line_tells_what_happened_where_and_when(self):
        (line,) = lines(
            lambda: get_logger("ocpp_billing.sync").info("run ended", action="sync.end", queued=3)
        )
        assert line.pop("timestamp").endswith("Z")
        assert line == {
            "event": "run ended",
            "action": "sync.end",
            "queued": 3,
            "level": "info",
            "logger": "ocpp_billing.sync",
        }

    def test_no_secret_is_in_it(self):
        (line,) = lines(
            lambda: get_logger("test").info(
                "asked", headers={"Authorization": "Bearer hunter2"}, api_key="hunter2"
            )
        )
        assert (line["headers"], line["api_key"]) == ({"Authorization": "[hidden]"}, "[hidden]")

    def test_what_is_bound_to_the_run_is_on_every_line(self):
        with structlog.contextvars.bound_contextvars(run_id=7, password="hunter2"):
            (line,) = lines(lambda: get_logger("test").info("one", action="test"))
        assert (line["run_id"], line["password"]) == (7, "[hidden]")

    def test_less_than_the_level_is_not_logged(self):
        assert lines(lambda: get_logger("test").info("quiet", action="test"), level="warning") == []

    def test_the_level_itself_is_logged(self):
        assert len(lines(lambda: get_logger("test").warning("loud", action="test"), level="warning")) == 1

    def test_the_standard_librarys_loggers_speak_the_same_way(self):
        (line,) = lines(lambda: logging.getLogger("django.request").warning("Not Found: %s", "/nowhere"))
        found = (line["event"], line["level"], line["logger"])
        assert found == ("Not Found: /nowhere", "warning", "django.request")

    def test_an_exception_is_one_line_with_its_traceback(self):
        (line,) = lines(fail_with_a_secret_at_hand)
        assert "ValueError: invalid literal" in line["exception"]

    def test_http_calls_are_the_clients_own_business(self):
        assert lines(lambda: logging.getLogger("httpx2").info("HTTP Request: GET https://example.org")) == []

    def test_http_calls_are_told_when_debugging(self):
        told = lines(lambda: logging.getLogger("httpx2").info("HTTP Request"), level="debug")
        assert [line["logger"] for line in told] == ["httpx2"]

    def test_configuring_twice_does_not_write_twice(self):
        def configure_again_and_log() -> None:
            configure_logging(json_lines=True)
            get_logger("test").info("once", action="test")

        assert len(lines(configure_again_and_log)) == 1


class TestConsole:
    def test_a_line_tells_what_happened(self):
        text = logged(lambda: get_logger("test").warning("database away", action="worker.database"))
        assert text.count("\n") == 1
        assert "database away" in text
        assert "action=worker.database" in text

    def test_no_secret_is_in_it(self):
        text = logged(
            lambda: get_logger("test").info("asked", headers={"cookie": "hunter2"}, auth_secret="hunter2")
        )
        assert "asked" in text
        assert "hunter2" not in text

    def test_a_traceback_shows_no_variables(self):
        text = logged(fail_with_a_secret_at_hand)
        assert "ValueError: invalid literal" in text
        assert "hunter2" not in text


@pytest.mark.parametrize(("level", "traced"), [(logging.WARNING, False), (logging.ERROR, True)])
def test_a_refused_request_is_one_line_and_a_fault_shows_where(level, traced):
    from ocpp_billing.log import without_trace_of_refusals

    try:
        raise PermissionError("viewer")
    except PermissionError:
        record = logging.getLogger("django.request").makeRecord(
            "django.request", level, __file__, 1, "Forbidden: %s", ("/setup",), sys.exc_info()
        )
    assert without_trace_of_refusals(record)
    assert bool(record.exc_info) == traced


def test_a_foreign_host_name_is_one_line_that_names_our_setting():
    from django.core.exceptions import DisallowedHost

    def ask():
        try:
            raise DisallowedHost(
                "Invalid HTTP_HOST header: 'evil'. You may need to add 'evil' to ALLOWED_HOSTS."
            )
        except DisallowedHost as error:
            logger = logging.getLogger("django.security.DisallowedHost")
            logger.log(logging.ERROR, str(error), exc_info=error)

    (line,) = logged(ask).splitlines()
    assert "Invalid HTTP_HOST header: 'evil'. AUTH_URL says under which host people come" in line
    assert "ALLOWED_HOSTS" not in line
