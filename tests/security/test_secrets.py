"""No secret is in anything that real processes write, answer, show to others or keep.

Every secret setting gets a text that occurs nowhere else, at the most talkative level of logging, while
things go right and while they go wrong. Then everything is searched for them.
"""

from __future__ import annotations

import dataclasses
import re
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.db import connection
from django.urls import URLResolver, get_resolver

from ocpp_billing.accounts.models import Role
from ocpp_billing.config import Config
from tests.caches import clear_caches
from tests.engine.processes import run_command, running, test_database_url
from tests.portal.conftest import add_person
from tests.security.visitor import Visitor, free_port, post_json, web_process
from tests.world import forget_people

SIGN_IN = "Marked0-password-to-sign-in"
SECRETS = {
    "STEVE_API_KEY": "Marked1-key-of-steve",
    "LAGO_API_KEY": "Marked2-key-of-lago",
    "AUTH_SECRET": "Marked3-secret-that-signs-sessions-and-more",
    "EMAIL_PASSWORD": "Marked4-password-of-the-mail-server",
    "ALERT_WEBHOOK_SECRET": "Marked5-secret-that-signs-alerts-to-a-webhook",
    "ADMIN_PASSWORD": "Marked6-password-of-the-first-admin",
}
# In settings that are no secret by themselves.
DATABASE_PASSWORD, WEBHOOK_TOKEN = "Marked7-password-of-the-database", "Marked8-token-in-the-webhooks-address"
# Sent by people and programs.
TYPED = {"password": "Marked9-wrong-password", "token": "obs_MarkedA-wrong-token", "weak": "MarkedB"}
ALL = [SIGN_IN, *SECRETS.values(), DATABASE_PASSWORD, WEBHOOK_TOKEN, *TYPED.values()]


@pytest.fixture
def now():
    """Processes of their own have the machine's clock."""
    return datetime.now(UTC)


@pytest.fixture
def settings(world):
    world.payer("TAG-ALICE", "alice")
    world.go_live()
    world.session("TAG-ALICE")
    world.steve.api.password = SECRETS["STEVE_API_KEY"]
    world.lago.api.api_key = SECRETS["LAGO_API_KEY"]
    clear_caches()
    add_person(Role.ADMIN)
    url = urlsplit(test_database_url())
    nowhere = free_port()
    yield {
        **world.environment(),
        **SECRETS,
        "DATABASE_URL": url._replace(query=f"{url.query}&password={DATABASE_PASSWORD}").geturl(),
        "EMAIL_HOST": "127.0.0.1",
        "EMAIL_PORT": str(nowhere),
        "EMAIL_SECURITY": "none",
        "EMAIL_USERNAME": "billing",
        "EMAIL_FROM": "billing@example.org",
        "ALERT_EMAIL_TO": "ops@example.org",
        "ALERT_WEBHOOK_URL": f"http://127.0.0.1:{nowhere}/hook/{WEBHOOK_TOKEN}?key={WEBHOOK_TOKEN}",
        "ALERT_OUTAGE_MINUTES": "0",
        "ADMIN_EMAIL": "first@example.org",
        "ADMIN_NAME": "The first",
        "LOG_LEVEL": "debug",
        "SYNC_ON_STARTUP": "true",
        "SYNC_WATCH_SECONDS": "1",
    }
    clear_caches()
    forget_people()


def test_this_knows_every_secret_setting():
    secret = re.compile(r"key$|secret|password|token")
    names = {field.name.upper() for field in dataclasses.fields(Config) if secret.search(field.name)}
    assert names == set(SECRETS) - {"ADMIN_PASSWORD"}


def test_no_secret_leaves_the_processes(world, settings, tmp_path):
    from ocpp_billing.accounts.models import User

    admin = User.objects.get(role=Role.ADMIN)
    admin.set_password(SIGN_IN)
    admin.save()
    written, shown = {}, {}

    def command(*arguments, **changed):
        done = run_command(*arguments, settings=settings | changed)
        written[" ".join(arguments), *changed] = done.stdout + done.stderr
        return done.returncode

    with ExitStack() as stack:
        worker = stack.enter_context(running("worker", settings=settings, log=tmp_path / "worker"))
        site, web = stack.enter_context(web_process(settings, tmp_path / "web"))
        assert command("create-admin") == 0
        assert command("doctor") in {0, 1, 3}
        assert command("sync", "--json") == 0
        # Things go wrong: wrong keys, no database, settings that are none.
        assert command("doctor", LAGO_API_KEY=f"{SECRETS['LAGO_API_KEY']}-wrong") != 0
        command("balance", DATABASE_URL=f"postgresql://u:{DATABASE_PASSWORD}@127.0.0.1:{free_port()}/x")
        command("balance", DATABASE_URL=f"postgres:/u:{DATABASE_PASSWORD}@[", AUTH_SECRET="Marked3")
        world.steve.api.password = "another one now"
        world.steve.api.forget_users()
        assert command("sync") == 1

        visitor = Visitor()
        assert visitor.sign_in(site, "admin@example.org", TYPED["password"]) == 200
        assert visitor.sign_in(site, "admin@example.org", SIGN_IN) == 302
        paths = list(every_address())
        assert {"/", "/api/balance", "/api/audit", "/setup"} <= set(paths)
        for path in paths:
            status, text, headers = visitor.ask(f"{site}{path}")
            assert status < 500, (path, text[:300])
            shown[path] = text + str(headers)
        bearer = f"Bearer {TYPED['token']}"
        for path in ("/api/balance", "/metrics", "/readyz"):
            shown["token", path] = str(visitor.ask(f"{site}{path}", Authorization=bearer))
        person = {"email": "x", "name": "", "role": "admin", "password": TYPED["weak"]}
        shown["POST"] = str(post_json(f"{site}/api/users", person, Authorization=bearer))
        form = {"oldpassword": SIGN_IN, "password1": TYPED["weak"], "password2": TYPED["weak"]}
        shown["weak"] = str(visitor.ask(f"{site}/accounts/password/change/", form))
        commands = {pid: command_line(pid) for process in (worker, web) for pid in process.members()}
        assert commands
        written |= {"worker": worker.said(), "web": web.said()}
        worker.terminate()
        web.terminate()
        written |= {"worker": worker.said(), "web": web.said()}

    for kind, texts in {"written": written, "shown": shown, "process list": commands, "kept": kept()}.items():
        for where, text in texts.items():
            found = [secret for secret in ALL if secret in text]
            assert not found, (kind, where, found)
    # The search finds what is there: an address that is no secret.
    assert any("first@example.org" in text for text in kept().values())
    assert "first@example.org" in written["create-admin",]


def every_address():
    """All addresses without parameters, but the streams that never end."""

    def walk(patterns, prefix):
        for pattern in patterns:
            path = prefix + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, path)
            elif not re.search(r"[<(^]", path):
                yield path

    return (
        path for path in walk(get_resolver().url_patterns, "/") if path not in {"/live", "/accounts/logout/"}
    )


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kept():
    """Every row of every table."""
    with connection.cursor() as cursor:
        tables = connection.introspection.table_names(cursor)
        rows = {}
        for table in tables:
            cursor.execute(f"SELECT coalesce(string_agg(t::text, chr(10)), '') FROM \"{table}\" t")
            (rows[table],) = cursor.fetchone()
    return rows
