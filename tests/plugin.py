"""Loaded before everything else (``-p tests.plugin``): a known environment and one PostgreSQL server.

Django reads its settings when pytest-django loads, which is before any conftest.py. The one server is
started by the controller (or the lone pytest); the workers of pytest-xdist inherit its address.
``TEST_DATABASE_URL`` names another server, whose user must be allowed to create databases.
"""

import dataclasses
import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from ocpp_billing.config import Config
from ocpp_billing.embedded.postgres import EmbeddedPostgres, EmbeddedPostgresError

PREFIXES = ("STEVE_", "LAGO_", "SYNC_", "BILLING_", "DELIVERY_", "OCPP_BILLING_")
KEPT = {"OCPP_BILLING_PG_BIN", "OCPP_BILLING_REQUIRE_BROWSER"}
FIXED = {
    "AUTH_SECRET": "a secret of the tests, which is 32 characters or longer",
    "AUTH_URL": "http://localhost:8000",
    "DJANGO_SETTINGS_MODULE": "ocpp_billing.settings",
    "OCPP_BILLING_ENV_FILE": "",  # a developer's .env is not for the tests
}
# Nothing here has to survive a power cut.
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}


def clean_environment() -> None:
    """Forget every setting of the developer's, and set those that the tests count on."""
    settings = {field.name.upper() for field in dataclasses.fields(Config)}
    for name in list(os.environ):
        if name not in KEPT and (name in settings or name.startswith(PREFIXES)):
            del os.environ[name]
    os.environ.update(FIXED)


def start_database(config: pytest.Config) -> str:
    """Start the server of this test run; it is stopped and removed when pytest ends, however it ends."""
    folder = Path(tempfile.mkdtemp(prefix="ocpp-billing-tests-"))
    if os.geteuid() == 0:
        folder.chmod(0o711)  # the user who runs the server for root has to get in
    programs = os.environ.get("OCPP_BILLING_PG_BIN")
    postgres = EmbeddedPostgres(folder, settings=SETTINGS, binaries_dir=Path(programs) if programs else None)

    def remove() -> None:
        postgres.stop()
        for path in {folder, postgres.home or folder}:
            shutil.rmtree(path, ignore_errors=True)

    config.add_cleanup(remove)
    try:
        return postgres.start()
    except EmbeddedPostgresError as error:
        raise pytest.UsageError(f"{error}\nThe tests take TEST_DATABASE_URL for another server.") from error


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config):
    """Before pytest-django reads the settings: a wrapper runs ahead of every plain implementation."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        clean_environment()
        known = early_config.known_args_namespace
        if os.environ.get("TEST_DATABASE_URL"):
            os.environ["DATABASE_URL"] = os.environ["TEST_DATABASE_URL"]
        elif not (known.help or known.version):
            os.environ["DATABASE_URL"] = start_database(early_config)
            early_config.add_cleanup(lambda: os.environ.pop("DATABASE_URL", None))
    return (yield)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked 'long': more of the same")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Sockets lead to this machine only (pytest-socket reads these options next)."""
    config.option.allow_hosts = "127.0.0.1,::1,localhost"
    config.option.allow_unix_socket = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="takes long: run with --long")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """All that was imported stays until the end: the collector looks at it once, not thousands of times."""
    gc.collect()
    gc.freeze()
