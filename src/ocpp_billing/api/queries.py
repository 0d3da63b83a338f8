"""What can be asked for in an address, behind the question mark."""

from typing import Annotated, Literal

from ninja import Schema
from pydantic import Field

from ocpp_billing.api.schemas import EventStateName, GivenInstant, Id, Name, Text
from ocpp_billing.charging.models import SessionState
from ocpp_billing.sync.models import RunStatus

TAG = "The whole tag, in any case; for viewers its last four characters."
ANY_OF = "Any of these; may be repeated."
Limit = Annotated[int, Field(ge=1, le=500, description="So many at most.")]


class Pages(Schema):
    """Which page."""

    limit: Limit = 100
    cursor: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="'next' of the page before; leave it out for the first page."
    )


class Range(Schema):
    """From when to when; half-open."""

    since: GivenInstant | None = Field(None, alias="from", description="At or after this instant.")
    until: GivenInstant | None = Field(None, alias="to", description="Before this instant.")


class LedgerQuery(Pages, Range):
    """Sessions or usage events."""

    reason: Text | None = None
    customer: Text | None = Field(None, description="Lago's external customer id.")
    subscription: Text | None = Field(None, description="Lago's external subscription id.")
    tag: Text | None = Field(None, description=TAG)
    charge_box: Text | None = None
    steve_id: Id | None = Field(None, description="StEvE's transaction id.")
    format: Literal["json", "csv"] | None = Field(
        None, description="csv = all rows of the filter as a file; so does 'Accept: text/csv'."
    )


class SessionQuery(LedgerQuery):
    """Sessions."""

    state: list[SessionState] = Field([], description=ANY_OF)


class EventQuery(LedgerQuery):
    """Usage events."""

    state: list[EventStateName] = Field([], description=ANY_OF)


class HeldQuery(Pages):
    """Sessions that wait for a person."""

    state: Literal["held", "stuck", "rejected"] = "held"
    reason: Text | None = None


class RunQuery(Pages):
    """Runs."""

    status: RunStatus | None = None


class MappingQuery(Pages):
    """Mappings."""

    tag: Text | None = Field(None, description=TAG)
    customer: Text | None = Field(None, description="Lago's external customer id.")
    current: bool | None = Field(None, description="true = valid now or later; false = over.")


class TagQuery(Pages):
    """Tags."""

    search: Text = Field(
        "", description="Part of the tag, in any case; for viewers exactly its last four characters."
    )
    unmapped: bool = Field(
        default=False,
        description="Only tags whose sessions wait for a mapping, most energy first; one page.",
    )


class CustomerQuery(Schema):
    """Customers."""

    search: Text = Field("", description="Part of name, e-mail or external id.")
    limit: Limit = 50


class SubscriptionQuery(Schema):
    """Subscriptions."""

    customer: Name = Field(description="Lago's external customer id.")


class TokenQuery(Schema):
    """Tokens."""

    everybody: bool = Field(default=False, description="Of all people; admins only.")


class AuditQuery(Pages, Range):
    """Acts of people."""

    user: Id | None = None
    action: Text | None = Field(None, description="Such as mapping.create, or how it begins: mapping.")
    target: Text | None = None
