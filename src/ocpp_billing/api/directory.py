"""What mappings are made of: StEvE's tags, Lago's customers and subscriptions."""

from typing import Any

from django.conf import settings
from ninja import Query, Router

from ocpp_billing import clock
from ocpp_billing.accounts.models import Role
from ocpp_billing.api.auth import ApiRequest, allow
from ocpp_billing.api.pages import cut_page, decode_cursor
from ocpp_billing.api.queries import CustomerQuery, SubscriptionQuery, TagQuery
from ocpp_billing.api.schemas import (
    CustomerList,
    CustomersRead,
    SubscriptionList,
    TagPage,
)
from ocpp_billing.billing.customers import refresh_customers as read_all_customers
from ocpp_billing.billing.customers import search_customers, subscriptions_of
from ocpp_billing.charging.mask import IDENTITY_IN_DOUBT
from ocpp_billing.mappings.tags import list_tags as find_tags

router = Router(tags=["Tags, customers and subscriptions"])


@router.get("/tags", response=TagPage, auth=allow(Role.VIEWER))
def list_tags(
    request: ApiRequest,
    query: Query[TagQuery],
) -> Any:
    """Tags that StEvE or a session showed, and who pays for them now."""
    caller = request.auth
    rows = find_tags(
        settings.CONFIG.steve_source,
        clock.now(),
        search=query.search if caller.sees_tags else None,
        end=query.search if query.search and not caller.sees_tags else None,
        unmapped=query.unmapped,
        after=0 if query.unmapped else decode_cursor("tag", query.cursor) or 0,
        limit=query.limit if query.unmapped else query.limit + 1,
    )
    page, following = cut_page(rows, query.limit, "tag", lambda row: row.tag_id)
    items = [
        {
            "id_tag": caller.tag(row.id_tag),
            "parent": None if row.parent is None else caller.tag(row.parent),
            "note": row.note if caller.sees_tags else None,
            "blocked": row.blocked,
            "vanished_at": row.vanished_at,
            "identity_conflict": (
                IDENTITY_IN_DOUBT if row.identity_conflict and not caller.sees_tags else row.identity_conflict
            ),
            "mapped": row.mapped,
            "customer_id": row.customer,
            "waiting": {"sessions": row.waiting_sessions, "energy_wh": row.waiting_wh},
        }
        for row in page
    ]
    return {"items": items, "next": following}


@router.get("/customers", response=CustomerList, auth=allow(Role.VIEWER))
def list_customers(
    request: ApiRequest,
    query: Query[CustomerQuery],
) -> Any:
    """Lago's customers. While Lago is away, ``unreachable`` is true and these are the remembered ones.

    For a viewer Lago is not asked: what is remembered is what there is, and ``read_at`` says since when.
    """
    found = search_customers(
        settings.CONFIG, query.search, limit=query.limit, may_ask=request.auth.may_ask_lago
    )
    items = [
        {
            "id": row.external_id,
            "name": row.name,
            "email": row.email,
            "currency": row.currency,
            "timezone": row.timezone,
            "read_at": row.read_at,
        }
        for row in found.rows
    ]
    return {"items": items, "unreachable": found.unreachable is not None, "message": found.unreachable}


@router.post("/customers/refresh", response=CustomersRead, auth=allow(Role.OPERATOR))
def refresh_customers(request: ApiRequest) -> Any:  # noqa: ARG001 - ninja's signature
    """Read all customers of Lago now, and forget those that are gone."""
    return {"customers": read_all_customers(settings.CONFIG)}


@router.get("/subscriptions", response=SubscriptionList, auth=allow(Role.VIEWER))
def list_subscriptions(
    request: ApiRequest,
    query: Query[SubscriptionQuery],
) -> Any:
    """The subscriptions of a customer, in every status. An upgrade shows as two rows of one id.

    For a viewer Lago is not asked: what is remembered is what there is, and ``read_at`` says since when.
    """
    return _subscriptions(query.customer, refresh=False, may_ask=request.auth.may_ask_lago)


@router.post("/subscriptions/refresh", response=SubscriptionList, auth=allow(Role.OPERATOR))
def refresh_subscriptions(
    request: ApiRequest,  # noqa: ARG001 - ninja's signature
    query: Query[SubscriptionQuery],
) -> Any:
    """The same, asked from Lago now, however fresh the last answer is."""
    return _subscriptions(query.customer, refresh=True)


def _subscriptions(customer: str, *, refresh: bool, may_ask: bool = True) -> dict[str, Any]:
    found = subscriptions_of(settings.CONFIG, customer, refresh=refresh, may_ask=may_ask)
    items = [
        {
            "id": row.external_id,
            "name": row.name,
            "customer_id": row.external_customer_id,
            "plan_code": row.plan_code,
            "status": row.status,
            "started_at": row.started_at,
            "terminated_at": row.terminated_at,
            "period_from": row.period_from,
            "period_to": row.period_to,
            "read_at": row.read_at,
        }
        for row in found.rows
    ]
    return {"items": items, "unreachable": found.unreachable is not None, "message": found.unreachable}
