"""``./run demo``: the whole product on this machine, with recorded sessions of a real StEvE.

Simulated StEvE and Lago stand in for the two systems; everything else is the real thing: PostgreSQL,
HTTP, the worker, the portal. The recorded times are shifted so that one billing period is open.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from ocpp_billing import clock
from ocpp_billing.config import Config
from ocpp_billing.simulators.lago import LagoSimulator
from ocpp_billing.simulators.steve import SteveSimulator
from ocpp_billing.simulators.steve_recording import recording_offset

if TYPE_CHECKING:
    from datetime import datetime

ADMIN_EMAIL = "admin@example.org"
# Mappings, subscriptions and billing begin so long ago: every recorded session but that of 1970 is later.
BEGINS_BEFORE = timedelta(days=20)
CUSTOMERS = {
    "TAG-ALICE": ("alice", "Alice Ampere"),
    "TAG-BOB": ("bob", "Bob Becquerel"),
    "TAG-CAROL": ("carol", "Carol Coulomb"),
    "TAG-DAVE": ("dave", "Dave Davy"),
    "TAG-FLEET": ("fleet", "Faraday Fleet"),
}


@dataclass(slots=True)
class DemoWorld:
    """The two simulated systems of a demo.

    Attributes:
        steve: with the recorded sessions.
        lago: with a metric, a plan, five customers and their subscriptions.
        begins_at: when mappings, subscriptions and billing begin.
    """

    steve: SteveSimulator
    lago: LagoSimulator
    begins_at: datetime

    @classmethod
    def of_release(
        cls, release: str, *, host: str = "127.0.0.1", steve_port: int = 0, lago_port: int = 0
    ) -> DemoWorld:
        """Simulate both systems with the recording of a StEvE release; nothing is served yet.

        Args:
            release: of which there is a recording.
            host: to listen on.
            steve_port: 0 = any that is free.
            lago_port: 0 = any that is free.

        Raises:
            ValueError: when that release was not recorded.
            OSError: when a port is taken.
        """
        now = clock.now()
        shift = recording_offset(now, release)
        steve = SteveSimulator(release, host=host, port=steve_port)
        steve.load_recording(release, shift=shift)
        begins_at = (now - BEGINS_BEFORE).replace(microsecond=0)
        lago = LagoSimulator(host=host, port=lago_port)
        lago.create_metric(name="EV charging (kWh)")
        lago.create_plan(name="EV pay as you go")
        for customer, name in CUSTOMERS.values():
            lago.create_customer(customer, name=name, currency="EUR")
            lago.subscribe(
                customer,
                "ev_payg",
                f"sub-{customer}",
                subscription_at=begins_at,
                billing_time="anniversary",
                name=f"EV charging of {name}",
            )
        return cls(steve, lago, begins_at)

    def start(self) -> None:
        """Serve both."""
        self.steve.start()
        self.lago.start()

    def stop(self) -> None:
        """Stop serving."""
        self.steve.stop()
        self.lago.stop()

    def environment(self) -> dict[str, str]:
        """The settings that connect the product to this world."""
        return {
            "STEVE_API_URL": self.steve.base_url,
            "STEVE_API_USERNAME": "admin",
            "STEVE_API_KEY": "steve-secret",
            "LAGO_API_URL": self.lago.url,
            "LAGO_API_KEY": self.lago.api_key,
            "CONFIRM_SETTLE_SECONDS": "0",
            "SYNC_WATCH_SECONDS": "5",
            "OCPP_BILLING_ENV_FILE": "",
        }


def isolate_environment(world: DemoWorld) -> None:
    """Let only the demo's settings count: a real key in the environment must never meet a demo."""
    kept = {"OCPP_BILLING_DATA_DIR", "OCPP_BILLING_PG_BIN", "LOG_LEVEL", "LOG_FORMAT", "AUTH_URL"}
    for field in dataclasses.fields(Config):
        name = field.name.upper()
        if name not in kept:
            os.environ.pop(name, None)
    os.environ.update(world.environment())
    os.environ["AUTH_SECRET"] = secrets.token_urlsafe(48)


def fresh_database() -> None:
    """Empty the demo's database: an old demo's sessions belong to another (simulated) StEvE."""
    import psycopg
    from psycopg import sql
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    url = os.environ["DATABASE_URL"]
    name = sql.Identifier(str(conninfo_to_dict(url)["dbname"]))
    maintenance = make_conninfo(url, dbname="template1")
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))


def furnish(world: DemoWorld, *, empty: bool = False) -> str:
    """Make the demo's admin, mappings and go-live date in the empty ledger.

    Args:
        world: the simulated systems.
        empty: make the admin only: who tries it maps and goes live by themselves.

    Returns:
        The admin's password.
    """
    from ocpp_billing.accounts.first_admin import create_admin
    from ocpp_billing.billing.control import go_live
    from ocpp_billing.config import load_config
    from ocpp_billing.mappings.store import create_mapping

    config = load_config()
    password = secrets.token_urlsafe(12)
    create_admin(ADMIN_EMAIL, password, "Demo admin", actor="demo")
    if empty:
        return password
    for tag, (customer, name) in CUSTOMERS.items():
        create_mapping(
            source=config.steve_source,
            id_tag=tag,
            customer=customer,
            subscription=None,
            valid_from=world.begins_at,
            note=name,
            by="demo",
        )
    go_live(config, world.begins_at, by="demo")
    return password


def say(text: str) -> None:
    """Tell the person at the terminal."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
