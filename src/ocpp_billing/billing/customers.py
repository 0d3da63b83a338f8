"""Lago's customers and subscriptions to choose from: asked when Lago answers, remembered when it does not.

Every answer is kept in the ledger. While Lago is away, what is kept is offered and said to be old; a
mapping made then is marked unverified.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from django.db.models import Q

from ocpp_billing import clock
from ocpp_billing.billing.models import LagoCustomerRead, LagoSubscription
from ocpp_billing.effects import effect
from ocpp_billing.lago.client import LagoClient, LagoSettings
from ocpp_billing.lago.directory import FRESH_FOR, LagoDirectory
from ocpp_billing.lago.errors import LagoError, Misconfigured
from ocpp_billing.mappings.models import LagoCustomer
from ocpp_billing.mappings.store import MappingError
from ocpp_billing.remembered import remembered

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from ocpp_billing.config import Config
    from ocpp_billing.lago.wire import Customer

Row = TypeVar("Row")

# A person waits for the answer: a slow Lago counts as away, and is not asked again at every keystroke.
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, ANSWER_TIMEOUT_S = 2.0, 5.0, 10.0
SEARCH_AGAIN_AFTER_S = 60
AWAY_FOR_S = 15
CUSTOMERS_PER_CALL = 100
_AWAY = "lago-away"


@dataclass(frozen=True, slots=True)
class Found(Generic[Row]):
    """What was found, and how good that is.

    Attributes:
        rows: from the ledger, after Lago was asked.
        unreachable: why Lago could not be asked, and what to do; None = it could, or need not be.
    """

    rows: list[Row]
    unreachable: str | None = None


def search_customers(
    config: Config, search: str = "", *, limit: int = 50, refresh: bool = False, may_ask: bool = True
) -> Found[LagoCustomer]:
    """Customers by a part of their name, e-mail or external id; by name.

    Lago is asked once a minute for the same search. A Lago that knows no search answers with its newest
    customers; then :func:`refresh_customers` makes all of them findable.

    Args:
        config: the settings.
        search: part of what to look for; empty = the newest customers.
        limit: so many at most.
        refresh: ask Lago now, however fresh the last answer is.
        may_ask: False = only what the ledger remembers, for people who only read: asking costs Lago's time
            and writes rows.
    """
    search = search.strip()
    asked = f"lago-customers:{hashlib.sha256(search.casefold().encode()).hexdigest()}"
    unreachable = None
    if may_ask and (refresh or remembered.get(asked) is None):
        try:
            with ask_lago(config, ask_now=refresh) as client:
                page = client.customers(search or None, per_page=CUSTOMERS_PER_CALL)
            _keep(page.rows, clock.now())
            remembered.set(asked, True, SEARCH_AGAIN_AFTER_S)
        except LagoError as error:
            unreachable = _away(error)
    known = LagoCustomer.objects.all()
    if search:
        known = known.filter(
            Q(name__icontains=search) | Q(email__icontains=search) | Q(external_id__icontains=search)
        )
    return Found(list(known.order_by("name", "external_id")[:limit]), unreachable)


def refresh_customers(config: Config) -> int:
    """Read all customers of Lago, and forget those that are gone; returns how many there are.

    Raises:
        LagoError: when Lago cannot be read to the end; what was read until then is kept.
    """
    began, number, page_number = clock.now(), 0, 1
    with ask_lago(config, ask_now=True) as client:
        while True:
            page = client.customers(page=page_number, per_page=CUSTOMERS_PER_CALL)
            _keep(page.rows, clock.now())
            number += len(page.rows)
            if page.meta.next_page is None or page.meta.next_page <= page_number:
                break
            page_number = page.meta.next_page
    with effect("db commit customers"):
        LagoCustomer.objects.filter(read_at__lt=began).delete()
    remembered.delete(_AWAY)
    return number


def subscriptions_of(
    config: Config, customer: str, *, refresh: bool = False, may_ask: bool = True
) -> Found[LagoSubscription]:
    """The subscriptions of a customer, in every status, running ones first; asked for when 5 minutes old.

    Args:
        config: the settings.
        customer: Lago's external customer id.
        refresh: ask Lago now.
        may_ask: False = only what the ledger remembers.
    """
    unreachable = None
    now = clock.now()
    read_at = LagoCustomerRead.objects.filter(external_id=customer).values_list("read_at", flat=True).first()
    if may_ask and (refresh or read_at is None or read_at < now - FRESH_FOR):
        try:
            with ask_lago(config, ask_now=refresh) as client:
                LagoDirectory(client, config.lago_metric_code).refresh({customer}, now)
        except LagoError as error:
            unreachable = _away(error)
    rows = LagoSubscription.objects.filter(external_customer_id=customer).order_by("status", "external_id")
    return Found(list(rows), unreachable)


def verify_payer(config: Config, customer: str, subscription: str | None) -> bool:
    """Ask Lago whether it knows a customer, and the subscription as that customer's.

    Returns:
        True when it does; False when Lago cannot be asked now.

    Raises:
        MappingError: when Lago says that there is no such customer or subscription.
    """
    try:
        with ask_lago(config, ask_now=False) as client:
            known = client.customer(customer)
            if known is None:
                raise MappingError(
                    f"Lago has no customer with the external id {customer!r}. Choose one from the list, or "
                    "create the customer in Lago first."
                )
            _keep([known], clock.now())
            if subscription is None:
                return True
            LagoDirectory(client, config.lago_metric_code).refresh({customer}, clock.now())
    except LagoError as error:
        _away(error)
        return False
    rows = LagoSubscription.objects.filter(external_customer_id=customer, external_id=subscription)
    if not rows.exists():
        raise MappingError(
            f"Customer {customer!r} has no subscription with the external id {subscription!r} in Lago. "
            "Choose one of theirs, or leave it empty to use their only one."
        )
    return True


def ask_lago(config: Config, *, ask_now: bool) -> LagoClient:
    """A client that gives up soon: a person waits.

    Raises:
        LagoError: when Lago is not configured, or was away a moment ago and need not be asked now.
    """
    away = remembered.get(_AWAY)
    if away is not None and not ask_now:
        raise LagoError(away)
    if config.lago_api_key is None:
        raise Misconfigured("LAGO_API_KEY is not set. Copy it from Lago: Developers, API keys.")
    return LagoClient(
        LagoSettings(
            url=config.lago_api_url,
            api_key=config.lago_api_key,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            read_timeout_s=READ_TIMEOUT_S,
            answer_timeout_s=ANSWER_TIMEOUT_S,
        )
    )


def _away(error: LagoError) -> str:
    remembered.set(_AWAY, str(error), AWAY_FOR_S)
    return str(error)


def _keep(customers: Iterable[Customer], now: datetime) -> None:
    rows = {
        customer.external_id: LagoCustomer(
            external_id=customer.external_id,
            name=customer.label,
            email=customer.email,
            currency=customer.currency,
            timezone=customer.applicable_timezone or customer.timezone,
            read_at=now,
        )
        for customer in customers
    }
    with effect("db commit customers"):
        LagoCustomer.objects.bulk_create(
            # In one order, so that two who keep the same customers wait for each other and never deadlock.
            [rows[external_id] for external_id in sorted(rows)],
            update_conflicts=True,
            unique_fields=["external_id"],
            update_fields=["name", "email", "currency", "timezone", "read_at"],
        )
