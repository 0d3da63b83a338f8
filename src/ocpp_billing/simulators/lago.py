"""A simulated Lago: the billing side as a real HTTP server that keeps a ledger of what it would invoice.

It accepts, refuses, overwrites and forgets events as the real one does in four kinds of event store,
cuts billing periods by its own clock, and knows for every event where it was billed or why it never
will be. Everything an engine must see through its API is there; everything a test wants to know
besides is below ``/_sim/`` and in the methods of :class:`LagoSimulator`.

Read on along the way of the data: ``lago_api`` (routes), ``lago_events`` (stores), ``lago_books``
(subscriptions, billing), ``lago_usage`` (counting), ``lago_periods`` (calendar), ``lago_ledger``.
Wallets, taxes, webhooks and the fees of plans themselves are not simulated.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from ocpp_billing.simulators import lago_ledger
from ocpp_billing.simulators.arguments import port_or_any, say_cannot_listen, say_wrong
from ocpp_billing.simulators.lago_api import LagoApi
from ocpp_billing.simulators.lago_books import Books
from ocpp_billing.simulators.lago_events import STORES, StoreName
from ocpp_billing.simulators.lago_formats import LagoError, lago_uuid
from ocpp_billing.simulators.lago_periods import billing_instant
from ocpp_billing.simulators.server import Fault, Request, Response, SimulatedServer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from ocpp_billing.simulators.lago_catalogue import Customer, Metric, Plan
    from ocpp_billing.simulators.lago_subscriptions import Invoice, Subscription

DEFAULT_VERSIONS: dict[StoreName, str] = {
    "postgres": "1.51.0",
    "postgres-1.32": "1.38.2",
    "postgres-1.30": "1.30.0",
    "clickhouse": "1.51.0",
    "clickhouse-plain": "1.51.0",
}
DEFAULT_API_KEY = "lago-simulator-key"
DEFAULT_ORGANIZATION_ID = lago_uuid(0x06, 1)

encode = msgspec.json.Encoder(decimal_format="string").encode


class LagoSimulator(SimulatedServer):
    """A Lago organisation behind HTTP.

    Args:
        store: which event store and batch behaviour, see ``lago_events``.
        version: what ``/health`` says and what depends on it; a default by store.
        api_key: the bearer token.
        organization_id: the organisation's ``lago_id``.
        timezone: of the organisation, for customers without their own.
        path_prefix: serve below it, such as ``/api``, as behind the proxy of Lago's own compose file.
        host: address to listen on.
        port: 0 = any free one.
    """

    def __init__(
        self,
        store: StoreName = "postgres",
        *,
        version: str | None = None,
        api_key: str = DEFAULT_API_KEY,
        organization_id: str = DEFAULT_ORGANIZATION_ID,
        timezone: str = "UTC",
        path_prefix: str = "",
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        if store not in STORES:
            raise ValueError(f"no store {store!r}; there are {', '.join(STORES)}")
        self.store = store
        self.version = (version or DEFAULT_VERSIONS[store]).removeprefix("v")
        if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){1,2}", self.version):
            raise ValueError(f"{self.version!r} is no version of Lago such as 1.47.0")
        parts = tuple(int(part) for part in self.version.split("."))
        super().__init__(host=host, port=port)
        self.path_prefix = path_prefix.rstrip("/")
        self.books = Books(store=store, version=parts, timezone=timezone, now=self.now)
        self.api = LagoApi(self.books, version=parts, api_key=api_key, organization_id=organization_id)

    @property
    def api_key(self) -> str:
        """The bearer token that opens it."""
        return self.api.api_key

    @property
    def organization_id(self) -> str:
        """The organisation's ``lago_id``; set it to become another organisation behind the same key."""
        return self.api.organization_id

    @organization_id.setter
    def organization_id(self, value: str) -> None:
        self.api.organization_id = value

    @property
    def api_url(self) -> str:
        """What ``LAGO_API_URL`` must be to reach it."""
        return f"{self.url}{self.path_prefix}"

    # -- set-up --------------------------------------------------------------------------------

    def create_metric(
        self,
        code: str = "ev_charging_kwh",
        field_name: str | None = "kwh",
        *,
        aggregation_type: str = "sum_agg",
        **given: Any,
    ) -> Metric:
        """A billable metric; other keys as in ``POST /billable_metrics``.

        Raises:
            LagoError: as the API refuses it.
        """
        metric = {"name": code, "code": code, "field_name": field_name, "aggregation_type": aggregation_type}
        with self.lock:
            return self.books.catalogue.create_metric({**metric, **given}, self.books.advance())

    def create_plan(
        self,
        code: str = "ev_payg",
        *,
        metric_code: str | None = "ev_charging_kwh",
        amount: str = "0.39",
        pay_in_advance_charge: bool = False,
        charges: Iterable[dict[str, Any]] | None = None,
        **given: Any,
    ) -> Plan:
        """A plan, monthly and free by itself, with one standard charge on a metric (None = no charge).

        Args:
            code: its code.
            metric_code: what its one charge counts; it must exist.
            amount: price of a unit, such as EUR per kWh.
            pay_in_advance_charge: bill each event when it comes.
            charges: instead, all charges as in ``POST /plans``, naming metrics by ``billable_metric_code``.
            **given: other keys of ``POST /plans`` (``interval``, ``amount_cents``, …).

        Raises:
            LagoError: as the API refuses it.
        """
        if charges is None:
            charge = {
                "billable_metric_code": metric_code,
                "charge_model": "standard",
                "pay_in_advance": pay_in_advance_charge,
                "properties": {"amount": amount},
            }
            charges = [] if metric_code is None else [charge]
        plan = {
            "name": code,
            "code": code,
            "interval": "monthly",
            "amount_cents": 0,
            "charges": list(charges),
        }
        with self.lock:
            return self.books.catalogue.create_plan({**plan, **given}, self.books.advance(), premium=True)

    def create_customer(self, external_id: str, **given: Any) -> Customer:
        """A customer; other keys as in ``POST /customers`` (``name``, ``timezone``, …).

        Raises:
            LagoError: as the API refuses it.
        """
        with self.lock:
            return self.books.catalogue.upsert_customer(
                {"external_id": external_id, **given}, self.books.advance()
            )

    def subscribe(
        self,
        external_customer_id: str,
        plan_code: str,
        external_id: str,
        *,
        subscription_at: datetime | None = None,
        billing_time: str = "calendar",
        **given: Any,
    ) -> Subscription:
        """A subscription from ``subscription_at`` (now), pending while that lies ahead.

        Raises:
            LagoError: as the API refuses it.
        """
        body = {
            "external_customer_id": external_customer_id,
            "plan_code": plan_code,
            "external_id": external_id,
            "subscription_at": subscription_at,
            "billing_time": billing_time,
        }
        with self.lock:
            self.books.advance()
            return self.books.subscribe({**body, **given})

    def seed(self, given: dict[str, Any]) -> dict[str, int]:
        """Set up much at once.

        Args:
            given: ``metrics``, ``plans``, ``customers``, ``subscriptions``: lists of the bodies that the
                API takes (without their root); charges may name their metric by ``billable_metric_code``.

        Returns:
            How many of each there are now.
        """
        with self.lock:
            now = self.books.advance()
            for item in given.get("metrics", []):
                self.books.catalogue.create_metric(
                    {"name": item.get("code"), "aggregation_type": "sum_agg", **item}, now
                )
            for item in given.get("plans", []):
                plan = {"name": item.get("code"), "interval": "monthly", **item}
                self.books.catalogue.create_plan(plan, now, premium=True)
            for item in given.get("customers", []):
                self.books.catalogue.upsert_customer(item, now)
            for item in given.get("subscriptions", []):
                self.books.subscribe(item)
            self.books.advance()
            return {
                "metrics": len(self.books.catalogue.metrics),
                "plans": len(self.books.catalogue.plans),
                "customers": len(self.books.catalogue.customers),
                "subscriptions": len(self.books.subscriptions),
            }

    # -- the life of subscriptions -------------------------------------------------------------

    def upgrade(self, external_id: str, plan_code: str) -> Subscription:
        """Change to another plan at once: the old row is terminated and billed. Returns the new row.

        Raises:
            KeyError: no such active subscription, or plan.
        """
        with self.lock:
            return self.books.upgrade(self._active(external_id), self.books.catalogue.plans[plan_code])

    def downgrade(self, external_id: str, plan_code: str) -> Subscription:
        """Change to another plan when the period has been billed. Returns the pending row.

        Raises:
            KeyError: no such active subscription, or plan.
        """
        with self.lock:
            return self.books.downgrade(self._active(external_id), self.books.catalogue.plans[plan_code])

    def terminate(self, external_id: str) -> Subscription:
        """End the active subscription now and bill it.

        Raises:
            KeyError: no such active subscription.
        """
        with self.lock:
            return self.books.terminate(self._active(external_id))

    def _active(self, external_id: str) -> Subscription:
        self.books.advance()
        row = self.books.active(external_id)
        if row is None:
            raise KeyError(f"no active subscription {external_id}")
        return row

    def run_billing(self) -> list[Invoice]:
        """Do what Lago's clock would have done by now; returns the invoices that this made."""
        with self.lock:
            before = len(self.books.invoices)
            self.books.advance()
            return self.books.invoices[before:]

    def close_period(self, external_id: str) -> list[Invoice]:
        """Move the clock to just after the job that bills the current period; returns its invoices.

        Raises:
            KeyError: no such active subscription.
        """
        with self.lock:
            row = self._active(external_id)
            due_at = billing_instant(row.period_at(self.now()), row.created_at)
            if due_at is None:
                raise KeyError(f"no bill is due for {external_id}")
            self.set_clock(due_at + timedelta(seconds=1), frozen=self._clock_frozen_at is not None)
            return self.run_billing()

    # -- misbehaviour of its own ---------------------------------------------------------------

    def lose_events(self, count: int) -> None:
        """Answer 200 to the next ``count`` events and store nothing (an asynchronous produce that failed)."""
        with self.lock:
            self.books.events.lose_events = count

    def lose_jobs(self, count: int) -> None:
        """Store the next ``count`` events without the job after storing: stale usage, no fee in advance."""
        with self.lock:
            self.books.events.lose_jobs = count

    def delay_visibility(self, seconds: float) -> None:
        """ClickHouse: events are readable and counted only this long after they were stored."""
        with self.lock:
            self.books.events.visibility_delay_us = int(seconds * 1_000_000)

    def delay_usage(self, seconds: float) -> None:
        """Current usage is expired only this long after an event was stored (busy Sidekiq)."""
        with self.lock:
            self.books.usage.delay_us = int(seconds * 1_000_000)

    def set_batch_max(self, count: int) -> None:
        """``LAGO_EVENTS_BATCH_MAX_LENGTH``."""
        with self.lock:
            self.books.events.batch_max = count

    def refuse_unknown_subscriptions(self) -> None:
        """Let batches fail with 422 on an unknown subscription, as newer documentation says."""
        with self.lock:
            self.books.events.known_subscriptions = self.books.by_external_id

    def revoke_api_key(self) -> None:
        """401 from now on; for the routes of events only after the hour that the key is cached."""
        with self.lock:
            self.api.revoked_at = self.now()

    def deny(self, mode: str, resource: str) -> None:
        """403 for ``read`` or ``write`` of a resource such as ``event`` or ``customer``."""
        with self.lock:
            self.api.denied.add((mode, resource))

    def limit_rate(self, times: int, *, reset_s: int = 1, path: str = "") -> Fault:
        """Answer the next ``times`` requests with 429 and the headers of Lago Cloud."""
        headers = {
            "x-ratelimit-limit": "500",
            "x-ratelimit-remaining": "0",
            "x-ratelimit-reset": str(reset_s),
        }
        body = {"status": 429, "error": "Too Many Requests", "code": "rate_limit_exceeded"}
        return self.add_fault(Fault("status", path=path, times=times, status=429, headers=headers, body=body))

    # -- what it knows -------------------------------------------------------------------------

    def ledger(self, external_subscription_id: str | None = None) -> list[dict[str, Any]]:
        """Every stored event in order of arrival with its fate, see ``lago_ledger.fate``."""
        with self.lock:
            now = self.books.advance()
            return [
                lago_ledger.event_entry(self.books, event, now)
                for event in self.books.events.events
                if external_subscription_id in {None, event.subscription}
            ]

    def billed(self, external_subscription_id: str | None = None) -> list[dict[str, Any]]:
        """What each row is charged per charge and period (units Decimal), see ``lago_ledger``."""
        with self.lock:
            now = self.books.advance()
            lines = lago_ledger.billed_lines(self.books, now)
            return [
                line for line in lines if external_subscription_id in {None, line["external_subscription_id"]}
            ]

    def summary(self) -> dict[str, Any]:
        """Totals; ``energy_wh`` is everything counted, in Wh."""
        with self.lock:
            return lago_ledger.summary(self.books, self.books.advance())

    # -- HTTP ----------------------------------------------------------------------------------

    def handle(self, request: Request) -> Response:
        """Answer as Lago does, after whatever its clock had to do until now."""
        self.books.advance()
        if self.path_prefix:
            if not request.path.startswith(f"{self.path_prefix}/"):
                return Response(404, {"content-type": "text/plain"}, b"404 page not found")
            request.path = request.path.removeprefix(self.path_prefix)
        return self.api.handle(request)

    def handle_control(self, request: Request, command: str) -> Response | None:
        """``/_sim/``: see :meth:`seed`, :meth:`ledger` and the other methods; bodies are JSON objects."""
        reads: dict[str, Callable[[], Any]] = {
            "ledger": lambda: self.ledger(request.first("external_subscription_id")),
            "billed": lambda: self.billed(request.first("external_subscription_id")),
            "summary": self.summary,
        }
        writes: dict[str, Callable[[dict[str, Any]], Any]] = {
            "seed": self.seed,
            "upgrade": lambda body: self.upgrade(**body).json(self.now()),
            "downgrade": lambda body: self.downgrade(**body).json(self.now()),
            "terminate": lambda body: self.terminate(**body).json(self.now()),
            "run_billing": lambda _: [invoice.lago_id for invoice in self.run_billing()],
            "close_period": lambda body: [invoice.lago_id for invoice in self.close_period(**body)],
            "lose_events": lambda body: self.lose_events(**body),
            "lose_jobs": lambda body: self.lose_jobs(**body),
            "delay_visibility": lambda body: self.delay_visibility(**body),
            "delay_usage": lambda body: self.delay_usage(**body),
            "batch_max": lambda body: self.set_batch_max(**body),
            "refuse_unknown_subscriptions": lambda _: self.refuse_unknown_subscriptions(),
            "revoke_api_key": lambda _: self.revoke_api_key(),
            "deny": lambda body: self.deny(**body),
            "limit_rate": lambda body: self.limit_rate(**body).status,
            "organization_id": lambda body: setattr(self, "organization_id", body["organization_id"]),
        }
        try:
            if request.method == "GET" and command in reads:
                return _control_answer(reads[command]())
            if request.method == "POST" and command in writes:
                return _control_answer(writes[command](request.json() if request.body else {}))
        except LagoError as error:
            return Response.of_json(error.body, error.status)
        return None


def _control_answer(value: Any) -> Response:
    return Response(200, {"content-type": "application/json"}, encode(value))


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``ocpp-billing simulate lago``."""
    parser.add_argument(
        "--store",
        choices=STORES,
        default="postgres",
        help="event store: postgres (from v1.39), postgres-1.32 (v1.32.4-1.38), postgres-1.30 (to v1.32.3), "
        "clickhouse, clickhouse-plain (it counts an event again that it gets again)",
    )
    parser.add_argument(
        "--port", type=port_or_any, default=0, metavar="P", help="port to listen on; 0 takes a free one"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (loopback)")
    parser.add_argument("--api-key", default=DEFAULT_API_KEY, metavar="K", help="the key that opens it")
    parser.add_argument(
        "--organization-id", default=DEFAULT_ORGANIZATION_ID, metavar="ID", help="Lago id of its organisation"
    )
    parser.add_argument(
        "--lago-version", default=None, metavar="V", help="version it says it is, such as 1.47.0"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; 1 when the port cannot be had, 2 when an argument is wrong."""
    try:
        simulator = LagoSimulator(
            args.store,
            version=args.lago_version,
            api_key=args.api_key,
            organization_id=args.organization_id,
            host=args.host,
            port=args.port,
        )
    except ValueError as error:
        return say_wrong(error)
    except OSError as error:
        return say_cannot_listen(args.host, args.port, error)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with simulator:
        sys.stdout.write(f"Simulated Lago ({args.store}, v{simulator.version}): {simulator.url}\n")
        sys.stdout.write(f"API key {args.api_key}; its own ledger at {simulator.url}/_sim/summary\n")
        sys.stdout.flush()
        ended.wait()
    return 0
