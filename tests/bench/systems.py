"""What benchmarks run against: simulated systems in a process of their own, a database of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ocpp_billing.embedded.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGINS_BEFORE = timedelta(days=28)


@dataclass(frozen=True)
class Systems:
    """Two simulated systems, and a ledger that is connected to them.

    Attributes:
        tags: every id tag of the simulated StEvE; each has a customer ``c-<tag>`` with a subscription.
        pid: process of the simulators.
        database_pid: PostgreSQL's main process.
        begins_at: when subscriptions begin.
    """

    tags: list[str]
    pid: int
    database_pid: int
    begins_at: datetime


@contextmanager
def systems(release: str, count: int, **options: object) -> Iterator[Systems]:
    """Simulate both systems with ``count`` sessions, and set Django up on an empty durable database.

    Once per process: Django's settings are read here.
    """
    given = {"release": release, "count": count, "begins_at": begins_at().isoformat(), **options}
    simulators = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.simulators", json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert simulators.stdout is not None
        told = json.loads(simulators.stdout.readline())
        os.environ.update(told["environment"])
        with empty_ledger() as database_pid:
            yield Systems(told["tags"], simulators.pid, database_pid, begins_at())
    finally:
        simulators.kill()
        simulators.wait()


@contextmanager
def empty_ledger() -> Iterator[int]:
    """An empty durable database that Django is set up on, once per process; gives PostgreSQL's main process."""
    folder = Path(tempfile.mkdtemp(prefix="ocpp-bench-"))
    if os.geteuid() == 0:
        folder.chmod(0o711)  # the server's user has to get in
    postgres = EmbeddedPostgres(folder / "data")
    try:
        os.environ.update(OCPP_BILLING_ENV_FILE="", DATABASE_URL=postgres.start())
        set_up_ledger()
        yield postgres.pid or 0
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


def begins_at() -> datetime:
    return (datetime.now(UTC) - BEGINS_BEFORE).replace(minute=0, second=0, microsecond=0)


def set_up_ledger() -> None:
    from ocpp_billing.commands.ground import set_up_django
    from ocpp_billing.embedded.database import set_up_schema
    from ocpp_billing.log import configure_logging

    configure_logging(level="error")
    set_up_django()
    set_up_schema(embedded=True)


def map_all(systems: Systems) -> None:
    """Map every tag to its customer, and go live from when the subscriptions begin."""
    from ocpp_billing.billing.control import go_live
    from ocpp_billing.config import load_config
    from ocpp_billing.mappings.store import create_mapping

    config = load_config()
    for tag in systems.tags:
        create_mapping(
            source=config.steve_source,
            id_tag=tag,
            customer=f"c-{tag}",
            subscription=None,
            valid_from=systems.begins_at,
            by="bench",
        )
    go_live(config, systems.begins_at, by="bench")


def in_own_process(module: str, *arguments: str) -> int:
    """Run a benchmark's measuring part as a process: Django can be set up only once in one."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, check=False).returncode
