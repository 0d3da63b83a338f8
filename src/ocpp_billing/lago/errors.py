"""What can go wrong when Lago is read or set up, one exception each; all derive from :class:`LagoError`.

Delivery of events is not here: its outcome is a value (:mod:`ocpp_billing.lago.delivery`), because "we do
not know" is an everyday answer there that must be handled, not caught.

Every message is written for the operator: what happened, and which setting or act mends it. None ever
holds the API key.
"""

# ruff: noqa: N818 - each name says what happened (NotFound, RateLimited); "Error" would add nothing.
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class LagoError(Exception):
    """Anything that Lago, the way to it, or our settings for it make impossible."""


class Misconfigured(LagoError):
    """``LAGO_API_URL`` or ``LAGO_API_KEY`` cannot be what they are set to; nothing was asked."""


class Unsendable(LagoError):
    """An event breaks a rule that Lago does not check and would silently not bill; nothing was sent.

    Attributes:
        problems: by index in the batch, the broken rules in words. Index -1 is the batch as a whole.
    """

    def __init__(self, problems: Mapping[int, tuple[str, ...]]) -> None:
        self.problems = dict(problems)
        listed = "; ".join(f"event {index}: {', '.join(words)}" for index, words in self.problems.items())
        super().__init__(f"Not sent to Lago: {listed}")


class Unreachable(LagoError):
    """No complete HTTP answer arrived: refused, timed out, reset, cut short.

    Attributes:
        nothing_sent: no connection came about, so Lago cannot have carried the request out.
    """

    def __init__(self, message: str, *, nothing_sent: bool) -> None:
        super().__init__(message)
        self.nothing_sent = nothing_sent


class AnswerError(LagoError):
    """An HTTP answer arrived and is not what was asked for.

    Attributes:
        status: the HTTP status.
        code: Lago's error code (``customer_not_found``), or None where the answer holds none.
        words: what the answer says in its own words, shortened; empty where it says nothing readable.
    """

    def __init__(self, message: str, *, status: int, code: str | None = None, words: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.words = words


class Unauthorised(AnswerError):
    """401: the API key is unknown or revoked."""


class Forbidden(AnswerError):
    """403: the API key may not do this, or the feature needs a licence."""


class NotFound(AnswerError):
    """404 for an object: Lago's API answered and has no such thing."""


class MetricNotCharged(NotFound):
    """The subscription's plan has no charge on the billable metric (``charge_not_found``)."""


class NoActiveSubscription(AnswerError):
    """405 ``no_active_subscription``: current usage exists for active subscriptions only."""


class WrongAddress(AnswerError):
    """A redirect, or 404 for the route itself: Lago's API is not at ``LAGO_API_URL``."""


class NotAddressable(AnswerError):
    """A customer id with a dot in it, which Lago up to v1.51 cannot take in a path."""


class RateLimited(AnswerError):
    """429.

    Attributes:
        retry_after_s: how long Lago asks to wait, in seconds, or None.
    """

    def __init__(
        self, message: str, *, status: int, code: str | None, words: str, retry_after_s: float | None
    ) -> None:
        super().__init__(message, status=status, code=code, words=words)
        self.retry_after_s = retry_after_s


class BadRequest(AnswerError):
    """400 and the other 4xx without a class of their own: the request itself was not understood."""


class Unprocessable(AnswerError):
    """422: Lago understood and refuses; ``words`` hold its reasons."""


class ServerFault(AnswerError):
    """408 or 5xx, from Lago or a proxy before it; passing, as a rule."""


class NotJson(AnswerError):
    """A 2xx answer that is no JSON: something other than Lago's API answers at ``LAGO_API_URL``."""


class Malformed(AnswerError):
    """A 2xx JSON answer without what Lago's API promises for this call."""
