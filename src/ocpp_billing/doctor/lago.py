"""Lago: does it answer, as which version, for which organisation, and will it bill what we send?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from django.db.models import Q

from ocpp_billing import clock
from ocpp_billing.billing.models import DeliveryControl
from ocpp_billing.doctor.findings import Finding, judge_clock, ok, problem, warning
from ocpp_billing.lago.contract import NotBilled, choose_subscription, metric_faults
from ocpp_billing.lago.directory import READ_ALL_ABOVE, LagoDirectory, row_of
from ocpp_billing.lago.errors import LagoError
from ocpp_billing.mappings.models import TagMapping

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from ocpp_billing.config import Config
    from ocpp_billing.lago.client import LagoClient
    from ocpp_billing.lago.contract import SubscriptionRow
    from ocpp_billing.lago.wire import BillableMetric, Organization

OLDEST_LAGO = (1, 30)
# So many mappings whose contract is broken are named one by one.
MOST_NAMED = 20
STORES = {"postgres": "PostgreSQL", "clickhouse": "ClickHouse"}


def look_at_lago(config: Config, lago: LagoClient, *, with_ledger: bool) -> list[Finding]:
    """Everything about Lago and the contract with it; nothing is changed there or here.

    Args:
        config: the settings.
        lago: asks.
        with_ledger: the ledger can be read, so that its organisation and mappings can be compared.
    """
    found: list[Finding] = []
    try:
        found.append(_version(lago))
        before = clock.now()
        organization = lago.organization()
        found += judge_clock("Lago", lago.last_date, now := clock.now(), now - before)
        found.append(_organization(config, organization, with_ledger=with_ledger))
        directory = LagoDirectory(lago, config.lago_metric_code)
        found += look_at_metric(config.lago_metric_code, directory.metric())
        if with_ledger and directory.field_name is not None:
            found += list(look_at_mappings(config, directory, clock.now()))
    except LagoError as error:
        found.append(_failed(error))
    return found


def _failed(error: LagoError) -> Finding:
    says, _, advice = str(error).partition(". ")
    return problem("Lago", f"lago_{type(error).__name__}", f"{says.rstrip('.')}.", advice or "See above.")


def _version(lago: LagoClient) -> Finding:
    try:
        version = lago.health().version
    except LagoError as error:
        return warning(
            "Lago",
            "version_unknown",
            f"Its version is unknown: /health does not answer as Lago's does ({error})",
            "Nothing has to be done as long as everything below is fine.",
        )
    numbers = re.match(r"v?([0-9]+)\.([0-9]+)", version or "")
    if numbers is None:
        return warning("Lago", "version_unknown", f"It calls its version {version!r}.", "Nothing.")
    if (int(numbers[1]), int(numbers[2])) < OLDEST_LAGO:
        return problem(
            "Lago", "version_old", f"Lago {version} is older than v1.30.", "Upgrade Lago to v1.30 or later."
        )
    return ok("Lago", "version", f"Lago {version} answers.")


def _organization(config: Config, organization: Organization, *, with_ledger: bool) -> Finding:
    name = organization.name or organization.lago_id
    pinned = (
        DeliveryControl.objects.filter(
            source_id=config.steve_source, lago_organization_id__isnull=False
        ).first()
        if with_ledger
        else None
    )
    if pinned is not None and pinned.lago_organization_id != organization.lago_id:
        return problem(
            "Lago",
            "another_organization",
            f"LAGO_API_KEY belongs to the organisation {name}, but this ledger bills into "
            f"{pinned.lago_organization_name or pinned.lago_organization_id}.",
            "Put the right key back; to bill into another organisation, start with an empty database.",
        )
    store = STORES.get(organization.events_store or "", "of unknown kind (Lago before v1.47 does not say)")
    grace = organization.grace_period_days
    says = (
        f"Organisation {name}, time zone {organization.timezone or 'unknown'}, event store {store}, "
        f"grace period {grace} days{' (honoured with a licence only)' if grace else ''}."
    )
    if organization.events_store == "clickhouse":
        return warning(
            "Lago",
            "deduplication",
            f"{says} Lago's API does not say whether that store takes repeated events as one.",
            "Have whoever runs Lago check that clickhouse_deduplication_enabled is true for the organisation "
            "(it is where it was made with LAGO_DEFAULT_EVENT_STORE=clickhouse). Without it Lago bills each "
            "repetition, so what was sent with an open outcome is not sent again within ten minutes; nothing "
            "but that wait is in the way of a doubled event then.",
        )
    return ok("Lago", "organization", says)


# -- the contract --------------------------------------------------------------------------------------


def look_at_metric(code: str, metric: BillableMetric | None) -> list[Finding]:
    """Whether the metric sums what we send."""
    if metric is None:
        return [
            problem(
                "contract",
                "metric_missing",
                f"Lago has no billable metric {code}.",
                "Create it with ocpp-billing setup-lago, or set LAGO_METRIC_CODE to the one you have.",
            )
        ]
    faults = metric_faults(metric)
    found = [
        (problem if fault.breaks else warning)("contract", fault.code, fault.says, fault.do)
        for fault in faults
    ]
    if any(fault.breaks for fault in faults):
        return found
    return [ok("contract", "metric", f"Metric {code} sums the property {metric.field_name}."), *found]


def look_at_mappings(config: Config, directory: LagoDirectory, now: datetime) -> Iterator[Finding]:
    """Whether Lago would bill a session that ended now, for each payer of a mapping that is in force."""
    payers = _payers(config.steve_source, now)
    if not payers:
        yield warning(
            "contract",
            "no_mapping",
            "No id tag is mapped to a customer, so nothing can be billed.",
            "Map tags in the portal, or: ocpp-billing mappings import FILE.csv",
        )
        return
    rows = _rows({customer for customer, _ in payers}, directory)
    broken = []
    in_advance: set[str] = set()
    for customer, subscription in payers:
        of_customer = rows[customer]
        charges = directory.charges(of_customer)
        chosen = choose_subscription(
            of_customer,
            charges,
            now,
            customer=customer,
            subscription=subscription,
            metric_code=directory.metric_code,
        )
        if isinstance(chosen, NotBilled):
            broken.append((customer, subscription, chosen))
        elif chosen.charge.pay_in_advance:
            in_advance.add(chosen.row.plan_code)
    for customer, subscription, why in broken[:MOST_NAMED]:
        yield _not_billed(customer, subscription, why, missing=_is_missing(customer, rows, directory))
    if len(broken) > MOST_NAMED:
        yield problem(
            "contract",
            "more_mappings",
            f"So would those of {len(broken) - MOST_NAMED} more payers.",
            "Mend these first, then look again.",
        )
    if len(broken) < len(payers):
        yield ok(
            "contract", "mappings", f"Sessions of {len(payers) - len(broken)} payers would be billed by Lago."
        )
    for plan in sorted(in_advance):
        yield warning(
            "contract",
            "pay_in_advance",
            f"Plan {plan} charges the metric in advance: Lago never takes anything back there.",
            "Nothing, if that is meant: corrections downwards wait as refunds by credit note.",
        )
    if dotted := sorted(customer for customer in {customer for customer, _ in payers} if _has_dot(customer)):
        yield problem(
            "contract",
            "dotted_customer",
            f"Lago cannot be asked for the usage of {', '.join(dotted[:MOST_NAMED])}: it takes no dot or "
            "slash in a customer's external id, so their events are never confirmed.",
            "Give them external ids without one in Lago, and change the mappings.",
        )


def _is_missing(customer: str, rows: Mapping[str, list[SubscriptionRow]], directory: LagoDirectory) -> bool:
    """Whether Lago does not know the customer at all; of one with a dot in the id it cannot be asked."""
    return not rows[customer] and not _has_dot(customer) and directory.client.customer(customer) is None


def _not_billed(customer: str, subscription: str | None, why: NotBilled, *, missing: bool) -> Finding:
    if missing:
        return problem(
            "contract",
            "customer_missing",
            f"Lago has no customer {customer}: sessions mapped to it would be held.",
            "Create the customer in Lago with that external id, or change the mapping.",
        )
    whose = f"customer {customer}" + (f", subscription {subscription}" if subscription else "")
    return problem(
        "contract",
        str(why.reason),
        f"Sessions of {whose} would be held: {why.says}.",
        "Put it right in Lago, or change the mapping; what is held is decided anew by itself.",
    )


def _has_dot(external_id: str) -> bool:
    return "." in external_id or "/" in external_id


def _payers(source: str, now: datetime) -> list[tuple[str, str | None]]:
    """(customer, subscription) of every active mapping in force, once."""
    in_force = TagMapping.objects.filter(
        Q(valid_to__isnull=True) | Q(valid_to__gt=now),
        id_tag__source_id=source,
        active=True,
        valid_from__lte=now,
    )
    rows = in_force.values_list("customer_external_id", "subscription_external_id").distinct()
    return sorted(rows, key=lambda row: (row[0], row[1] or ""))


def _rows(customers: set[str], directory: LagoDirectory) -> dict[str, list[SubscriptionRow]]:
    """The subscription rows of these customers as Lago shows them now; nothing is kept."""
    found: dict[str, list[SubscriptionRow]] = {customer: [] for customer in customers}
    if len(customers) > READ_ALL_ABOVE:
        answers = directory.client.subscriptions()
    else:
        answers = (
            row
            for customer in sorted(customers)
            for row in directory.client.subscriptions(external_customer_id=customer)
        )
    for row in answers:
        if row.external_customer_id in found:
            found[row.external_customer_id].append(row_of(row))
    return found
