"""What an organisation sells and to whom: billable metrics, plans with charges, customers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime  # noqa: TC003 - dataclass fields are read at run time
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ocpp_billing.simulators.lago_formats import iso_seconds, lago_uuid, not_found, unprocessable
from ocpp_billing.simulators.lago_periods import INTERVALS

AGGREGATIONS = ("sum_agg", "count_agg", "max_agg", "latest_agg", "unique_count_agg")
CHARGE_MODELS = ("standard", "dynamic")
MANDATORY = ["value_is_mandatory"]
EXISTS = ["value_already_exist"]
INVALID = ["value_is_invalid"]


@dataclass(eq=False, slots=True)
class Metric:
    """A billable metric. ``field_name`` is the property that is aggregated; None for ``count_agg``."""

    lago_id: str
    name: str
    code: str
    created_at: datetime
    aggregation_type: str = "sum_agg"
    field_name: str | None = None
    recurring: bool = False
    rounding_function: str | None = None
    rounding_precision: int | None = None
    expression: str | None = None
    filters: list[dict[str, Any]] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """As ``GET /billable_metrics`` shows it."""
        shown = {
            "lago_id": self.lago_id,
            "name": self.name,
            "code": self.code,
            "description": None,
            "aggregation_type": self.aggregation_type,
            "weighted_interval": None,
            "recurring": self.recurring,
            "rounding_function": self.rounding_function,
            "rounding_precision": self.rounding_precision,
            "created_at": iso_seconds(self.created_at),
            "field_name": self.field_name,
            "filters": self.filters,
        }
        return {**shown, "expression": self.expression} if self.expression else shown


@dataclass(eq=False, slots=True)
class Charge:
    """A plan's price for a metric. ``pay_in_advance`` bills each event when it comes, else in arrears."""

    lago_id: str
    code: str | None
    metric: Metric
    created_at: datetime
    charge_model: str = "standard"
    pay_in_advance: bool = False
    invoiceable: bool = True
    properties: dict[str, Any] = field(default_factory=dict)
    filters: list[dict[str, Any]] = field(default_factory=list)
    invoice_display_name: str | None = None

    @property
    def group_keys(self) -> list[str]:
        """Properties by whose values usage is split into lines of its own."""
        return self.properties.get("pricing_group_keys") or self.properties.get("grouped_by") or []

    def amount(self, filter_index: int | None) -> Decimal:
        """Price of one unit in the currency's main unit."""
        properties = self.properties if filter_index is None else self.filters[filter_index]["properties"]
        return Decimal(properties.get("amount", "0"))

    def json(self) -> dict[str, Any]:
        """As it stands in a plan and in ``GET /subscriptions/{id}/charges``."""
        return {
            "lago_id": self.lago_id,
            "lago_billable_metric_id": self.metric.lago_id,
            "code": self.code,
            "billable_metric_code": self.metric.code,
            "invoice_display_name": self.invoice_display_name,
            "created_at": iso_seconds(self.created_at),
            "charge_model": self.charge_model,
            "pay_in_advance": self.pay_in_advance,
            "invoiceable": self.invoiceable,
            "regroup_paid_fees": None,
            "prorated": False,
            "min_amount_cents": 0,
            "properties": self.properties,
            "filters": self.filters,
            "taxes": [],
            "lago_parent_id": None,
        }


@dataclass(eq=False, slots=True)
class Plan:
    """A plan; ``amount_cents`` is what the dearer-or-cheaper rule of plan changes compares."""

    lago_id: str
    name: str
    code: str
    created_at: datetime
    interval: str = "monthly"
    amount_cents: int = 0
    amount_currency: str = "EUR"
    pay_in_advance: bool = False
    charges: list[Charge] = field(default_factory=list)

    @property
    def yearly_amount_cents(self) -> int:
        """The amount over a year."""
        per_year = {"weekly": 52, "monthly": 12, "quarterly": 4, "semiannual": 2, "yearly": 1}
        return self.amount_cents * per_year[self.interval]

    def json(self) -> dict[str, Any]:
        """As ``GET /plans`` shows it."""
        return {
            "lago_id": self.lago_id,
            "name": self.name,
            "invoice_display_name": self.name,
            "created_at": iso_seconds(self.created_at),
            "code": self.code,
            "interval": self.interval,
            "description": "",
            "amount_cents": self.amount_cents,
            "amount_currency": self.amount_currency,
            "trial_period": 0.0,
            "pay_in_advance": self.pay_in_advance,
            "bill_charges_monthly": None,
            "charges": [charge.json() for charge in self.charges],
            "taxes": [],
            "usage_thresholds": [],
        }


@dataclass(eq=False, slots=True)
class Customer:
    """A customer; ``timezone`` None = the organisation's."""

    lago_id: str
    sequential_id: int
    external_id: str
    created_at: datetime
    organization_timezone: str
    updated_at: datetime
    name: str | None = None
    firstname: str | None = None
    lastname: str | None = None
    legal_name: str | None = None
    email: str | None = None
    currency: str | None = None
    timezone: str | None = None

    @property
    def zone(self) -> ZoneInfo:
        """The applicable time zone, in which billing periods are cut."""
        return ZoneInfo(self.timezone or self.organization_timezone)

    def matches(self, search_term: str) -> bool:
        """Whether a search term is part of a name, id or e-mail, whatever its case."""
        shown = (self.name, self.firstname, self.lastname, self.legal_name, self.external_id, self.email)
        return any(search_term.casefold() in text.casefold() for text in shown if text)

    def json(self) -> dict[str, Any]:
        """As ``GET /customers`` shows it."""
        return {
            "lago_id": self.lago_id,
            "sequential_id": self.sequential_id,
            "slug": f"SIM-0001-{self.sequential_id:03d}",
            "external_id": self.external_id,
            "billing_entity_code": "default",
            "applicable_timezone": self.timezone or self.organization_timezone,
            "name": self.name,
            "firstname": self.firstname,
            "lastname": self.lastname,
            "legal_name": self.legal_name,
            "email": self.email,
            "currency": self.currency,
            "timezone": self.timezone,
            "account_type": "customer",
            "created_at": iso_seconds(self.created_at),
            "updated_at": iso_seconds(self.updated_at),
            "metadata": [],
            "taxes": [],
        }


class Catalogue:
    """Metrics, plans and customers of the organisation, by code or external id."""

    def __init__(self, timezone: str) -> None:
        self.timezone = timezone
        self.metrics: dict[str, Metric] = {}
        self.plans: dict[str, Plan] = {}
        self.customers: dict[str, Customer] = {}
        self._charge_count = 0

    def create_metric(self, given: dict[str, Any], now: datetime) -> Metric:
        """Create-only.

        Raises:
            LagoError: 422 with Lago's code per field; a second time ``code: value_already_exist``.
        """
        errors = {name: MANDATORY for name in ("name", "code") if not str(given.get(name) or "").strip()}
        if given.get("code") in self.metrics:
            errors["code"] = EXISTS
        aggregation = given.get("aggregation_type")
        if aggregation not in AGGREGATIONS:
            errors["aggregation_type"] = INVALID
        elif aggregation != "count_agg" and not given.get("field_name"):
            errors["field_name"] = MANDATORY
        if given.get("rounding_function") not in {None, "round", "ceil", "floor"}:
            errors["rounding_function"] = INVALID
        if errors:
            raise unprocessable(errors)
        metric = Metric(
            lago_id=lago_uuid(0xB1, len(self.metrics) + 1),
            created_at=now,
            name=given["name"],
            code=given["code"],
            aggregation_type=given["aggregation_type"],
            field_name=given.get("field_name"),
            recurring=bool(given.get("recurring")),
            rounding_function=given.get("rounding_function"),
            rounding_precision=given.get("rounding_precision"),
            expression=given.get("expression"),
            filters=given.get("filters") or [],
        )
        self.metrics[metric.code] = metric
        return metric

    def create_plan(self, given: dict[str, Any], now: datetime, *, premium: bool = False) -> Plan:
        """Create-only; charges name their metric by ``billable_metric_id`` or ``billable_metric_code``.

        Without ``premium`` ``invoiceable: false`` is ignored silently, as open-source Lago does.

        Raises:
            LagoError: 422 per field, 404 for a metric that does not exist.
        """
        errors = {name: MANDATORY for name in ("name", "code") if not str(given.get(name) or "").strip()}
        if given.get("code") in self.plans:
            errors["code"] = EXISTS
        if given.get("interval") not in INTERVALS:
            errors["interval"] = INVALID
        if errors:
            raise unprocessable(errors)
        plan = Plan(
            lago_id=lago_uuid(0xB2, len(self.plans) + 1),
            created_at=now,
            name=given["name"],
            code=given["code"],
            interval=given["interval"],
            amount_cents=int(given.get("amount_cents") or 0),
            amount_currency=given.get("amount_currency") or "EUR",
            pay_in_advance=bool(given.get("pay_in_advance")),
        )
        for item in given.get("charges") or []:
            plan.charges.append(self._charge(item, now, premium=premium))
        self.plans[plan.code] = plan
        return plan

    def _charge(self, given: dict[str, Any], now: datetime, *, premium: bool) -> Charge:
        metric = next(
            (
                metric
                for metric in self.metrics.values()
                if given.get("billable_metric_id") == metric.lago_id
                or given.get("billable_metric_code") == metric.code
            ),
            None,
        )
        if metric is None:
            raise not_found("billable_metrics")
        properties = given.get("properties") or {}
        model = given.get("charge_model")
        if model not in CHARGE_MODELS:
            raise unprocessable({"charge_model": INVALID})
        filters = [
            {"invoice_display_name": item.get("invoice_display_name"), **item}
            for item in given.get("filters") or []
        ]
        for priced in [properties, *(item["properties"] for item in filters)]:
            if model == "standard" and not _is_amount(priced.get("amount")):
                raise unprocessable({"amount": ["invalid_amount"]})
        self._charge_count += 1
        return Charge(
            lago_id=lago_uuid(0xB3, self._charge_count),
            created_at=now,
            metric=metric,
            code=given.get("code") or metric.code,
            charge_model=model,
            pay_in_advance=bool(given.get("pay_in_advance")),
            invoiceable=given.get("invoiceable") is not False or not premium,
            properties=properties,
            filters=filters,
            invoice_display_name=given.get("invoice_display_name"),
        )

    def upsert_customer(self, given: dict[str, Any], now: datetime) -> Customer:
        """Create or change the customer with this ``external_id``.

        Raises:
            LagoError: 422 without an external id or for an unknown time zone.
        """
        external_id = str(given.get("external_id") or "").strip()
        if not external_id:
            raise unprocessable({"external_id": MANDATORY})
        if given.get("timezone") and not _is_zone(given["timezone"]):
            raise unprocessable({"timezone": INVALID})
        customer = self.customers.get(external_id)
        if customer is None:
            number = len(self.customers) + 1
            customer = Customer(
                lago_id=lago_uuid(0xB4, number),
                sequential_id=number,
                external_id=external_id,
                created_at=now,
                updated_at=now,
                organization_timezone=self.timezone,
            )
            self.customers[external_id] = customer
        for name in ("name", "firstname", "lastname", "legal_name", "email", "currency", "timezone"):
            if name in given:
                setattr(customer, name, given[name])
        customer.updated_at = now
        return customer


def _is_amount(value: Any) -> bool:
    """Amounts are strings; a JSON number is refused."""
    try:
        return isinstance(value, str) and Decimal(value) >= 0
    except InvalidOperation:
        return False


def _is_zone(name: Any) -> bool:
    try:
        return bool(ZoneInfo(str(name)))
    except (ZoneInfoNotFoundError, ValueError):
        return False
