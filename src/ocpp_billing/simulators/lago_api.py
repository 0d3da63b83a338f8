"""Lago's HTTP routes below ``/api/v1``: what each takes, answers and refuses."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

from ocpp_billing.simulators.lago_formats import (
    LagoError,
    internal_error,
    iso_seconds,
    missing_parameter,
    not_found,
    read_iso_filter,
    to_us,
    units_text,
    unprocessable,
)
from ocpp_billing.simulators.lago_subscriptions import STATUSES
from ocpp_billing.simulators.lago_usage import charges_usage_json
from ocpp_billing.simulators.server import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ocpp_billing.simulators.lago_books import Books
    from ocpp_billing.simulators.lago_subscriptions import BilledPeriod, Fee, Invoice, Subscription

PREFIX = "/api/v1"
PER_PAGE = 100
KEY_CACHE = timedelta(hours=1)
JSON = {"content-type": "application/json; charset=utf-8"}
# What a path parameter may be: Rails cuts at a dot unless the route says otherwise.
NAME = r"([^/.?]+)(?:\.[^/.?]+)?"
WHOLE = r"([^/]+)"
# Lago keeps these to itself: being made, and closed without anything to pay.
INVISIBLE_INVOICES = frozenset({"generating", "open", "closed"})


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


class LagoApi:
    """Routes of one organisation.

    Attributes:
        api_key: the key that opens it.
        revoked_at: since when the key is revoked; event routes go on up to an hour.
        denied: pairs such as ``("write", "event")`` that the key may not do (403).
        version: (major, minor, patch).
    """

    def __init__(self, books: Books, *, version: tuple[int, ...], api_key: str, organization_id: str) -> None:
        self.books = books
        self.version = version
        self.api_key = api_key
        self.organization_id = organization_id
        self.revoked_at: datetime | None = None
        self.denied: set[tuple[str, str]] = set()
        self.created_at = books.now()
        subscription = WHOLE if version >= (1, 52) else NAME
        routes: list[tuple[str, str, str, Callable[[Request, tuple[str, ...]], Any]]] = [
            ("POST", "/events/batch", "event", self._create_events),
            ("POST", "/events", "event", self._create_event),
            ("GET", "/events", "event", self._list_events),
            ("GET", f"/events/{WHOLE}", "event", self._show_event),
            ("GET", "/organizations", "organization", self._show_organization),
            ("GET", "/customers", "customer", self._list_customers),
            ("POST", "/customers", "customer", self._upsert_customer),
            ("GET", f"/customers/{NAME}", "customer", self._show_customer),
            ("GET", "/customers/([^/.?]+)/current_usage", "customer_usage", self._current_usage),
            ("GET", "/customers/([^/.?]+)/past_usage", "customer_usage", self._past_usage),
            ("GET", "/customers/([^/.?]+)/subscriptions", "subscription", self._list_subscriptions_of),
            ("GET", "/subscriptions", "subscription", self._list_subscriptions),
            ("POST", "/subscriptions", "subscription", self._create_subscription),
            (
                "GET",
                f"/subscriptions/{subscription}/charges",
                "subscription",
                self._list_subscription_charges,
            ),
            ("GET", f"/subscriptions/{subscription}", "subscription", self._show_subscription),
            ("DELETE", f"/subscriptions/{subscription}", "subscription", self._terminate_subscription),
            ("GET", "/plans", "plan", self._list_plans),
            ("POST", "/plans", "plan", self._create_plan),
            ("GET", f"/plans/{NAME}", "plan", self._show_plan),
            ("GET", "/billable_metrics", "billable_metric", self._list_metrics),
            ("POST", "/billable_metrics", "billable_metric", self._create_metric),
            ("GET", f"/billable_metrics/{NAME}", "billable_metric", self._show_metric),
            ("GET", "/fees", "fee", self._list_fees),
            ("GET", f"/invoices/{NAME}", "invoice", self._show_invoice),
            ("POST", "/invoices/preview", "invoice", self._refuse_without_premium),
        ]
        self._routes = [(method, re.compile(path), resource, act) for method, path, resource, act in routes]

    # -- dispatch ------------------------------------------------------------------------------

    def handle(self, request: Request) -> Response:
        """Answer a request below ``/api/v1`` (or ``/health``)."""
        try:
            if request.method == "GET" and request.path == "/health":
                return self._answer(self._health())
            resource, act, arguments = self._route(request)
            self._authorize(request, resource)
            return self._answer(act(request, arguments))
        except LagoError as error:
            return Response(error.status, dict(JSON), encode(error.body))

    def _answer(self, value: Any) -> Response:
        return Response(200, dict(JSON), encode(value))

    def _route(
        self, request: Request
    ) -> tuple[str, Callable[[Request, tuple[str, ...]], Any], tuple[str, ...]]:
        if request.path.startswith(f"{PREFIX}/"):
            # What "%2E" and "%2F" do in Lago's router was not tried: the worse is assumed.
            path = unquote(request.path.removeprefix(PREFIX))
            for method, pattern, resource, act in self._routes:
                if method == request.method and (match := pattern.fullmatch(path)):
                    return resource, act, match.groups()
        raise not_found("resource")

    def _authorize(self, request: Request, resource: str) -> None:
        revoked_at = self.revoked_at
        if revoked_at is not None and resource == "event":
            revoked_at += KEY_CACHE
        revoked = revoked_at is not None and self.books.now() >= revoked_at
        if revoked or request.headers.get("authorization") != f"Bearer {self.api_key}":
            raise LagoError(401, "Unauthorized")
        mode = "read" if request.method == "GET" else "write"
        if (mode, resource) in self.denied:
            raise LagoError(403, "Forbidden", f"{mode}_action_not_allowed_for_{resource}")

    def _body(self, request: Request) -> dict[str, Any]:
        """The JSON body; another content type, a compressed or a broken body is not read."""
        if "json" not in request.headers.get("content-type", ""):
            return {}
        try:
            body = decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise LagoError(400, "BadRequest: error occurred while parsing request parameters") from None
        return body if isinstance(body, dict) else {}

    def _root(self, request: Request, name: str) -> dict[str, Any]:
        given = self._body(request).get(name)
        if not isinstance(given, dict) or not given:
            raise missing_parameter(name)
        return given

    # -- events --------------------------------------------------------------------------------

    def _create_events(self, request: Request, _: tuple[str, ...]) -> Any:
        events = self.books.events.add_batch(self._body(request).get("events"), to_us(self.books.now()))
        self.books.process(events)
        return {"events": [self.books.events.event_json(event, created=True) for event in events]}

    def _create_event(self, request: Request, _: tuple[str, ...]) -> Any:
        event = self.books.events.add_one(self._root(request, "event"), to_us(self.books.now()))
        self.books.process([event])
        return {"event": self.books.events.event_json(event, created=True)}

    def _show_event(self, _: Request, arguments: tuple[str, ...]) -> Any:
        event = self.books.events.find(arguments[0], to_us(self.books.now()))
        if event is None:
            raise not_found("event")
        return {"event": self.books.events.event_json(event)}

    def _list_events(self, request: Request, _: tuple[str, ...]) -> Any:
        subscription = request.first("external_subscription_id") or None
        from_us = self._time_filter(request, "timestamp_from")
        if request.first("timestamp_from_started_at") == "true":
            if not subscription:
                raise unprocessable({"external_subscription_id": ["value_is_mandatory"]})
            if from_us is not None:
                raise unprocessable({"timestamp_from": ["value_is_invalid"]})
            row = self.books.row(subscription, "active")
            from_us = to_us(row.started_at) if row is not None and row.started_at is not None else None
        found = self.books.events.select(
            subscription=subscription,
            code=request.first("code") or None,
            from_us=from_us,
            to_us=self._time_filter(request, "timestamp_to"),
            now_us=to_us(self.books.now()),
        )
        return paginated("events", found, request, self.books.events.event_json)

    def _time_filter(self, request: Request, name: str) -> int | None:
        value = request.first(name)
        return None if not value else to_us(read_iso_filter(name, value))

    # -- organisation --------------------------------------------------------------------------

    def _health(self) -> dict[str, str]:
        version = "v" + ".".join(str(part) for part in self.version)
        return {"version": version, "message": "Success"}

    def _show_organization(self, _: Request, __: tuple[str, ...]) -> Any:
        shown: dict[str, Any] = {
            "lago_id": self.organization_id,
            "name": "Simulated organisation",
            "created_at": iso_seconds(self.created_at),
            "webhook_url": None,
            "webhook_urls": [],
            "country": None,
            "default_currency": "EUR",
            "document_numbering": "per_customer",
            "document_number_prefix": "SIM-0001",
            "net_payment_term": 0,
            "timezone": self.books.catalogue.timezone,
            "billing_configuration": {
                "invoice_footer": None,
                "invoice_grace_period": 0,
                "document_locale": "en",
            },
            "taxes": [],
            "email_settings": [],
            "finalize_zero_amount_invoice": True,
        }
        if self.version >= (1, 47):
            shown["events_store"] = "clickhouse" if self.books.events.clickhouse else "postgres"
        return {"organization": shown}

    # -- customers -----------------------------------------------------------------------------

    def _list_customers(self, request: Request, _: tuple[str, ...]) -> Any:
        found = list(reversed(self.books.catalogue.customers.values()))
        external_id, search_term = request.first("external_id"), request.first("search_term")
        if external_id:
            found = [customer for customer in found if customer.external_id == external_id]
        if search_term:
            found = [customer for customer in found if customer.matches(search_term)]
        return paginated("customers", found, request, lambda customer: customer.json())

    def _upsert_customer(self, request: Request, _: tuple[str, ...]) -> Any:
        given = self._root(request, "customer")
        return {"customer": self.books.catalogue.upsert_customer(given, self.books.now()).json()}

    def _show_customer(self, _: Request, arguments: tuple[str, ...]) -> Any:
        customer = self.books.catalogue.customers.get(arguments[0])
        if customer is None:
            raise not_found("customer")
        return {"customer": customer.json()}

    # -- subscriptions -------------------------------------------------------------------------

    def _list_subscriptions(self, request: Request, _: tuple[str, ...]) -> Any:
        return self._subscriptions(request, request.first("external_customer_id"))

    def _list_subscriptions_of(self, request: Request, arguments: tuple[str, ...]) -> Any:
        if arguments[0] not in self.books.catalogue.customers:
            raise not_found("customer")
        return self._subscriptions(request, arguments[0])

    def _subscriptions(self, request: Request, external_customer_id: str | None) -> Any:
        """Only active ones by default; one unknown status switches the filter off silently."""
        statuses = request.all("status[]") or ["active"]
        found: Iterable[Subscription] = self.books.subscriptions
        if all(status in STATUSES for status in statuses):
            found = [row for row in found if row.status in statuses]
        if external_customer_id:
            found = [row for row in found if row.customer.external_id == external_customer_id]
        plan_code = request.first("plan_code")
        if plan_code:
            found = [row for row in found if row.plan.code == plan_code]
        ordered = sorted(
            found, key=lambda row: (row.subscription_at, row.created_at, row.lago_id), reverse=True
        )
        now = self.books.now()
        return paginated("subscriptions", ordered, request, lambda row: row.json(now))

    def _create_subscription(self, request: Request, _: tuple[str, ...]) -> Any:
        given = self._root(request, "subscription")
        if "plan_overrides" in given:
            raise LagoError(403, "Forbidden", "feature_unavailable")
        return self._subscription_json(self.books.subscribe(given))

    def _show_subscription(self, request: Request, arguments: tuple[str, ...]) -> Any:
        return self._subscription_json(self._subscription(request, arguments[0], "status"))

    def _terminate_subscription(self, request: Request, arguments: tuple[str, ...]) -> Any:
        row = self.books.terminate(self._subscription(request, arguments[0], "status"))
        return {"subscription": row.json(self.books.now())}

    def _list_subscription_charges(self, request: Request, arguments: tuple[str, ...]) -> Any:
        row = self._subscription(request, arguments[0], "subscription_status")
        return paginated("charges", row.plan.charges, request, lambda charge: charge.json())

    def _subscription(self, request: Request, external_id: str, parameter: str) -> Subscription:
        row = self.books.row(external_id, request.first(parameter) or "active")
        if row is None:
            raise not_found("subscription")
        return row

    def _subscription_json(self, row: Subscription) -> Any:
        return {"subscription": {**row.json(self.books.now()), "plan": row.plan.json()}}

    # -- plans and metrics ---------------------------------------------------------------------

    def _list_plans(self, request: Request, _: tuple[str, ...]) -> Any:
        found = list(reversed(self.books.catalogue.plans.values()))
        return paginated("plans", found, request, lambda plan: plan.json())

    def _create_plan(self, request: Request, _: tuple[str, ...]) -> Any:
        given = self._root(request, "plan")
        return {"plan": self.books.catalogue.create_plan(given, self.books.now()).json()}

    def _show_plan(self, _: Request, arguments: tuple[str, ...]) -> Any:
        plan = self.books.catalogue.plans.get(arguments[0])
        if plan is None:
            raise not_found("plan")
        return {"plan": plan.json()}

    def _list_metrics(self, request: Request, _: tuple[str, ...]) -> Any:
        found = list(reversed(self.books.catalogue.metrics.values()))
        return paginated("billable_metrics", found, request, lambda metric: metric.json())

    def _create_metric(self, request: Request, _: tuple[str, ...]) -> Any:
        given = self._root(request, "billable_metric")
        return {"billable_metric": self.books.catalogue.create_metric(given, self.books.now()).json()}

    def _show_metric(self, _: Request, arguments: tuple[str, ...]) -> Any:
        metric = self.books.catalogue.metrics.get(arguments[0])
        if metric is None:
            raise not_found("billable_metric")
        return {"billable_metric": metric.json()}

    # -- usage and fees ------------------------------------------------------------------------

    def _current_usage(self, request: Request, arguments: tuple[str, ...]) -> Any:
        customer = self.books.catalogue.customers.get(arguments[0])
        if customer is None:
            raise internal_error()  # not 404: the code that should rescue it fails itself
        row = self.books.active(request.first("external_subscription_id") or "")
        if row is None or row.customer is not customer:
            raise LagoError(405, "Method Not Allowed", "no_active_subscription")
        now = self.books.now()
        begins, ends = row.bounds(row.period_at(now))
        charges = self._filtered_charges(row, request)
        lines = [self.books.current_lines(row, charge, now)[2] for charge in charges]
        usage = [
            charges_usage_json(charge, of_charge, row.plan.amount_currency)
            for charge, of_charge in zip(charges, lines, strict=True)
        ]
        cents = sum(line.amount_cents for of_charge in lines for line in of_charge)
        return {
            "customer_usage": {
                "from_datetime": iso_seconds(begins),
                "to_datetime": iso_seconds(ends),
                "issuing_date": (ends + timedelta(seconds=1)).astimezone(customer.zone).date().isoformat(),
                "lago_invoice_id": None,
                "currency": row.plan.amount_currency,
                "amount_cents": cents,
                "taxes_amount_cents": 0,
                "total_amount_cents": cents,
                "charges_usage": usage,
            }
        }

    def _filtered_charges(self, row: Subscription, request: Request) -> list[Any]:
        """Filters without ``filter_by_`` exist since v1.47; before, they are ignored."""
        names = ["filter_by_charge_id", "filter_by_charge_code"]
        if self.version >= (1, 47):
            names += ["charge_id", "charge_code", "billable_metric_code"]
        charges = list(row.plan.charges)
        for name in names:
            value = request.first(name)
            if value is None:
                continue
            if name.endswith("charge_id"):
                charges = [charge for charge in charges if charge.lago_id == value]
            elif name.endswith("charge_code"):
                charges = [charge for charge in charges if charge.code == value]
            else:
                charges = [charge for charge in charges if charge.metric.code == value]
            if not charges:
                raise not_found("charge")
        return charges

    def _past_usage(self, request: Request, arguments: tuple[str, ...]) -> Any:
        external_id = request.first("external_subscription_id")
        if not external_id:
            raise unprocessable({"external_subscription_id": ["value_is_mandatory"]})
        metric_code = request.first("billable_metric_code")
        if metric_code and metric_code not in self.books.catalogue.metrics:
            raise not_found("billable_metric")
        periods = [
            period
            for row in self.books.by_external_id.get(external_id, ())
            if row.customer.external_id == arguments[0]
            for period in row.billed
        ]
        periods.sort(key=lambda period: period.begins, reverse=True)
        count = request.first("periods_count")
        if count and count.isdigit():
            periods = periods[: int(count)]
        return paginated(
            "usage_periods", periods, request, lambda period: past_usage_json(period, metric_code)
        )

    def _show_invoice(self, _: Request, arguments: tuple[str, ...]) -> Any:
        found = (invoice for invoice in self.books.invoices if invoice.lago_id == arguments[0])
        invoice = next(found, None)
        if invoice is None or invoice.status in INVISIBLE_INVOICES:
            raise not_found("invoice")
        return {"invoice": invoice_json(invoice)}

    def _list_fees(self, request: Request, _: tuple[str, ...]) -> Any:
        wanted: dict[str, Callable[[Fee], str | None]] = {
            "external_customer_id": lambda fee: fee.subscription.customer.external_id,
            "external_subscription_id": lambda fee: fee.subscription.external_id,
            "billable_metric_code": lambda fee: fee.charge.metric.code,
            "event_transaction_id": lambda fee: fee.event_transaction_id,
            "fee_type": lambda _: "charge",
        }
        found: list[Fee] = self.books.fees
        for name, read in wanted.items():
            value = request.first(name)
            if value:
                found = [fee for fee in found if read(fee) == value]
        return paginated("fees", found, request, fee_json)

    def _refuse_without_premium(self, _: Request, __: tuple[str, ...]) -> Any:
        raise LagoError(403, "Forbidden", "feature_unavailable")


def paginated(name: str, found: list[Any], request: Request, show: Callable[[Any], Any]) -> dict[str, Any]:
    """A page of a list with its meta; ``current_page`` is 0 when there is nothing."""
    page = max(_whole(request.first("page"), 1), 1)
    per_page = _whole(request.first("per_page"), PER_PAGE) or PER_PAGE
    total = len(found)
    pages = -(-total // per_page)
    return {
        name: [show(item) for item in found[(page - 1) * per_page : page * per_page]],
        "meta": {
            "current_page": page if total else 0,
            "next_page": page + 1 if page < pages else None,
            "prev_page": page - 1 if total and page > 1 else None,
            "total_pages": pages,
            "total_count": total,
        },
    }


def _whole(text: str | None, default: int) -> int:
    return int(text) if text and text.isdigit() else default


def past_usage_json(period: BilledPeriod, metric_code: str | None) -> dict[str, Any]:
    """One invoiced period; the amounts are those of the whole invoice, as in Lago."""
    by_charge: dict[str, list[Fee]] = {}
    for fee in period.fees:
        if metric_code is None or fee.charge.metric.code == metric_code:
            by_charge.setdefault(fee.charge.lago_id, []).append(fee)
    return {
        "from_datetime": iso_seconds(period.begins),
        "to_datetime": iso_seconds(period.ends),
        "issuing_date": period.invoice.issuing_date,
        "currency": period.invoice.currency,
        "amount_cents": period.invoice.fees_amount_cents,
        "total_amount_cents": period.invoice.fees_amount_cents,
        "taxes_amount_cents": 0,
        "lago_invoice_id": period.invoice.lago_id,
        "charges_usage": [
            charges_usage_json(fees[0].charge, [fee.usage for fee in fees], period.invoice.currency)
            for fees in by_charge.values()
        ],
    }


def invoice_json(invoice: Invoice) -> dict[str, Any]:
    """One invoice; taxes, coupons and credits are not simulated."""
    cents = invoice.fees_amount_cents
    return {
        "lago_id": invoice.lago_id,
        "billing_entity_code": "simulated",
        "sequential_id": invoice.customer.sequential_id,
        "number": invoice.number,
        "issuing_date": invoice.issuing_date,
        "invoice_type": "subscription",
        "status": invoice.status,
        "payment_status": "pending",
        "currency": invoice.currency,
        "fees_amount_cents": cents,
        "coupons_amount_cents": 0,
        "credit_notes_amount_cents": 0,
        "sub_total_excluding_taxes_amount_cents": cents,
        "taxes_amount_cents": 0,
        "sub_total_including_taxes_amount_cents": cents,
        "prepaid_credit_amount_cents": 0,
        "progressive_billing_credit_amount_cents": 0,
        "total_amount_cents": cents,
        "version_number": 4,
        "created_at": iso_seconds(invoice.created_at),
        "updated_at": iso_seconds(invoice.created_at),
    }


def fee_json(fee: Fee) -> dict[str, Any]:
    """A fee as ``GET /fees`` shows it."""
    row, charge = fee.subscription, fee.charge
    currency = row.plan.amount_currency
    unit_amount = charge.amount(fee.usage.filter_index)
    cents = fee.amount_cents
    return {
        "lago_id": fee.lago_id,
        "lago_charge_id": charge.lago_id,
        "lago_charge_filter_id": None,
        "lago_invoice_id": None if fee.invoice is None else fee.invoice.lago_id,
        "lago_true_up_fee_id": None,
        "lago_true_up_parent_fee_id": None,
        "lago_subscription_id": row.lago_id,
        "lago_customer_id": row.customer.lago_id,
        "external_customer_id": row.customer.external_id,
        "external_subscription_id": row.external_id,
        "amount_cents": cents,
        "amount_currency": currency,
        "taxes_amount_cents": 0,
        "taxes_rate": 0.0,
        "units": units_text(fee.usage.units),
        "precise_unit_amount": units_text(unit_amount),
        "total_aggregated_units": units_text(fee.usage.units),
        "total_amount_cents": cents,
        "total_amount_currency": currency,
        "sub_total_excluding_taxes_amount_cents": cents,
        "sub_total_excluding_taxes_precise_amount_cents": units_text(unit_amount * fee.usage.units * 100),
        "events_count": fee.usage.events_count,
        "pay_in_advance": charge.pay_in_advance,
        "invoiceable": charge.invoiceable,
        "from_date": iso_seconds(fee.begins),
        "to_date": iso_seconds(fee.ends),
        "payment_status": "pending",
        "created_at": iso_seconds(fee.created_at),
        "succeeded_at": None,
        "failed_at": None,
        "refunded_at": None,
        "event_transaction_id": fee.event_transaction_id,
        "item": {
            "type": "charge",
            "code": charge.metric.code,
            "name": charge.metric.name,
            "lago_item_id": charge.metric.lago_id,
            "item_type": "BillableMetric",
            "grouped_by": fee.usage.grouped_by,
        },
        "applied_taxes": [],
    }
