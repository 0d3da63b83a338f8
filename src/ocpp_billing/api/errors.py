"""Errors of the API: one JSON shape, and in each a sentence that says what to do.

``{"error": {"code": "not_found", "message": "There is no mapping 12.", "fields": []}}``
"""

from http import HTTPStatus
from typing import Any

from django.core.exceptions import ObjectDoesNotExist, RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from ninja import NinjaAPI, Schema
from ninja.errors import AuthenticationError, HttpError, ValidationError

from ocpp_billing.accounts.people import PeopleConflictError, PeopleError
from ocpp_billing.accounts.tokens import TokenError
from ocpp_billing.billing.review import ReviewError
from ocpp_billing.database import DISK_IS_FULL, MAKE_ROOM, is_disk_full
from ocpp_billing.lago.errors import LagoError
from ocpp_billing.log import get_logger
from ocpp_billing.mappings.store import MappingConflictError, MappingError

log = get_logger(__name__)


class FieldError(Schema):
    """One value of the request that cannot be taken."""

    field: str
    message: str


class ErrorDetail(Schema):
    """What went wrong, for programs (``code``) and for people (``message``)."""

    code: str
    message: str
    fields: list[FieldError] = []


class ErrorBody(Schema):
    """Every answer of the API above 399."""

    error: ErrorDetail


class ApiError(Exception):
    """The request is answered with this error.

    Attributes:
        status: of HTTP.
        code: fixed; programs go by it.
        message: a sentence or two for people, with what to do.
        headers: more of the answer; names have underscores for hyphens.
    """

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        self.status, self.code, self.message = status, code, message
        self.headers = headers
        super().__init__(message)

    def response(self) -> JsonResponse:
        """The answer."""
        return error_response(self.status, self.code, self.message, None, **self.headers)


def error_response(
    status: int, code: str, message: str, fields: list[dict[str, str]] | None = None, **headers: str
) -> JsonResponse:
    """The answer for an error; names of headers have underscores for hyphens."""
    body = {"error": {"code": code, "message": message, "fields": fields or []}}
    return JsonResponse(
        body,
        status=status,
        headers={"Cache-Control": "no-store", **{k.replace("_", "-"): v for k, v in headers.items()}},
    )


UNAUTHENTICATED = (
    "Sign in, or send a token: 'Authorization: Bearer obs_…'. Make one in the portal, or signed in with "
    "POST /api/tokens."
)
# What our own exceptions are in HTTP; the closest class counts.
KNOWN: list[tuple[type[Exception], int, str]] = [
    (MappingConflictError, 409, "conflict"),
    (MappingError, 422, "invalid"),
    (ReviewError, 409, "conflict"),
    (TokenError, 422, "invalid"),
    (PeopleConflictError, 409, "conflict"),
    (PeopleError, 422, "invalid"),
    (LagoError, 503, "lago_unreachable"),
]


def answer_errors(api: NinjaAPI) -> None:
    """Give every exception that can leave an operation its answer."""
    for kind, status, code in KNOWN:
        api.add_exception_handler(kind, _known(status, code))
    own: list[tuple[type[Exception], Any]] = [
        (ApiError, _api_error),
        (AuthenticationError, _unauthenticated),
        (ValidationError, _invalid),
        (HttpError, _http_error),
        (Http404, _not_found),
        (ObjectDoesNotExist, _not_found),
        (RequestDataTooBig, _too_big),
        (OperationalError, database_away),
        (InterfaceError, database_away),
        (Exception, unexpected),
    ]
    for kind, handler in own:
        api.add_exception_handler(kind, handler)


def _known(status: int, code: str) -> Any:
    def answer(_request: HttpRequest, error: Exception) -> HttpResponse:
        return error_response(status, code, str(error))

    return answer


def _api_error(_request: HttpRequest, error: Any) -> HttpResponse:
    response: JsonResponse = error.response()
    return response


def _unauthenticated(_request: HttpRequest, _error: Any) -> HttpResponse:
    return error_response(401, "unauthenticated", UNAUTHENTICATED, WWW_Authenticate="Bearer")


def _invalid(_request: HttpRequest, error: Any) -> HttpResponse:
    fields = [
        {
            # ("body", "data", "valid_from") -> "valid_from": the argument's own name says nothing.
            "field": ".".join(map(str, each["loc"][2:] if each["loc"][0] == "body" else each["loc"][1:])),
            "message": str(each["msg"]),
        }
        for each in error.errors
    ]
    named = ", ".join(sorted({each["field"] for each in fields if each["field"]}))
    message = f"The request cannot be understood: see {named or 'fields'}. /api/docs says what it must be."
    return error_response(422, "invalid", message, fields=fields)


def _http_error(_request: HttpRequest, error: Any) -> HttpResponse:
    if error.status_code == HTTPStatus.BAD_REQUEST:
        return error_response(400, "bad_request", "The body is not the JSON that /api/docs asks for.")
    return error_response(error.status_code, "error", str(error))


def _not_found(_request: HttpRequest, error: Exception) -> HttpResponse:
    message = str(error) if isinstance(error, Http404) and str(error) else "There is no such thing here."
    return error_response(404, "not_found", message)


def _too_big(_request: HttpRequest, _error: Exception) -> HttpResponse:
    return error_response(413, "too_big", "The body is too big: send less at once.")


def database_away(_request: HttpRequest, error: Exception) -> HttpResponse:
    """503: the database is away, or its disk is full."""
    log.warning("database away", action="api.database", error=type(error).__name__)
    if is_disk_full(error):
        return error_response(503, "database_full", f"{DISK_IS_FULL} {MAKE_ROOM}", Retry_After="60")
    return error_response(
        503, "database_unreachable", "The database does not answer. Try again in a moment.", Retry_After="5"
    )


def unexpected(request: HttpRequest, error: BaseException | None) -> HttpResponse:
    """The outermost boundary: what nobody foresaw is logged in full and told in a sentence."""
    log.error("unexpected", action="api.unexpected", path=request.path, exc_info=error)
    return error_response(
        500, "unexpected", "This should not have happened. It is in the log of the web application."
    )
