"""Why sessions are not billed: the words of the ledger for it. Pure."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a session is held or excluded. The codes are fixed: people filter and alert by them."""

    UNDECIDED = "undecided"
    IDENTITY_CONFLICT = "identity_conflict"
    CLOCK_SKEW = "clock_skew"
    NEGATIVE_ENERGY = "negative_energy"
    IMPLAUSIBLE = "implausible"
    REGISTER_OVERLAP = "register_overlap"
    MANUAL_STOP_WITHOUT_EVIDENCE = "manual_stop_without_evidence"
    ZERO_ENERGY = "zero_energy"
    BELOW_MINIMUM = "below_minimum"
    BEFORE_GO_LIVE = "before_go_live"
    KNOWN_BY_ANOTHER_SOURCE = "known_by_another_source"
    BILLED_BY_ANOTHER_SOURCE = "billed_by_another_source"
    UNMAPPED_TAG = "unmapped_tag"
    MAPPING_INACTIVE = "mapping_inactive"
    NO_SUBSCRIPTION = "no_subscription"
    AMBIGUOUS_SUBSCRIPTION = "ambiguous_subscription"
    METRIC_NOT_CHARGED = "metric_not_charged"
    LATE_PERIOD = "late_period"
    CHANGED_AFTER_BILLING = "changed_after_billing"
    REFUND_BY_CREDIT_NOTE = "refund_by_credit_note"
    CONFLICT_IN_LAGO = "conflict_in_lago"
    CHARGED_TWICE = "charged_twice"
    BY_OPERATOR = "by_operator"
    CREDITED = "credited"
