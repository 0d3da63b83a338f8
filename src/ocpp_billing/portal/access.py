"""Who may open a page or do an act. The API asks the same of a caller (:mod:`ocpp_billing.api.auth`)."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import Http404

from ocpp_billing.accounts.models import Role, User
from ocpp_billing.api.auth import Caller
from ocpp_billing.charging.mask import mask_id_tag

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.models import QuerySet
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

Row = TypeVar("Row", bound=Model)


def person(request: HttpRequest) -> User:
    """Who is signed in; behind :class:`SignInRequiredMiddleware` that is always somebody.

    Raises:
        PermissionDenied: when nobody is.
    """
    if not isinstance(request.user, User) or not request.user.is_active:
        raise PermissionDenied
    return request.user


def caller(request: HttpRequest) -> Caller:
    """Whoever is signed in, as the API knows callers: what is shared with it asks this.

    Raises:
        PermissionDenied: when nobody is.
    """
    user = person(request)
    return Caller(user, Role(user.role))


def needs(role: Role) -> Callable[[Callable[..., HttpResponseBase]], Callable[..., HttpResponseBase]]:
    """A view for people with at least this role; for everybody else 403, whatever the method."""

    def protect(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
        @wraps(view)
        def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if not role.within(Role(person(request).role)):
                raise PermissionDenied
            return view(request, *args, **kwargs)

        checked.needs = role  # type: ignore[attr-defined]  # the permission matrix of the tests reads it
        return checked

    return protect


class NotHereError(Http404):
    """There is no such thing, in a sentence for people; what Django's own 404 says is not for them."""


def find_here(rows: QuerySet[Row], number: int, missing: str, *, source: str = "source") -> Row:
    """The row of this number, if it is one of the configured StEvE.

    Args:
        rows: where to look.
        number: ours.
        missing: what to say when it is not there.
        source: which field of theirs names the StEvE.

    Raises:
        NotHereError: when it is not there.
    """
    found = rows.filter(**{source: settings.CONFIG.steve_source}).filter(pk=number).first()
    if found is None:
        raise NotHereError(missing)
    return found


def seen_tag(user: User, text: str) -> str:
    """An id tag as this person may see it: whole for operators, its last four characters for viewers."""
    return text if user.is_operator else mask_id_tag(text)
