"""StEvE's web API: authentication, routes, answers and refusals of each release."""

from __future__ import annotations

import base64
import binascii
import csv
import html
import io
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ocpp_billing.simulators.server import Response
from ocpp_billing.simulators.steve_json import (
    ROWS_PER_CHUNK,
    TransactionWriter,
    dumps,
    meter_value_object,
    ordered,
    tag_object,
)
from ocpp_billing.simulators.steve_operations import OPERATIONS, operate
from ocpp_billing.simulators.steve_query import (
    BadParameterError,
    as_integer,
    bind,
    energy_values_only,
    select,
    window,
)
from ocpp_billing.simulators.steve_store import (
    ACTORS,
    DuplicateTagError,
    TagIsParentError,
    UnknownParentError,
    UnknownTagError,
    UnknownTransactionError,
    collation_key,
)
from ocpp_billing.simulators.steve_time import iso_ms, parse_ms

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from ocpp_billing.simulators.server import Request
    from ocpp_billing.simulators.steve_central import CentralSystem
    from ocpp_billing.simulators.steve_cost import Call, CostModel
    from ocpp_billing.simulators.steve_operations import RemoteOperation
    from ocpp_billing.simulators.steve_store import Tag

MAX_HEAD_BYTES = 8192
JSON = "application/json"
ERRORS = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    422: "Unprocessable Entity",
    500: "Internal Server Error",
}
# From 3.8 on StEvE reads a web user at most so often: a changed password is believed, or refused, until then.
USER_CACHE_MS = 10 * 60 * 1000
UNKNOWN_USER = "The user does not exist, exists but is disabled or has API access disabled."
CSV_COLUMNS = (
    "id_tag",
    "start_event_timestamp",
    "start_timestamp",
    "start_value",
    "stop_event_actor",
    "stop_event_timestamp",
    "stop_timestamp",
    "stop_value",
    "stop_reason",
)


class ApiError(Exception):
    """An answer in StEvE's own error shape."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class NoRouteError(Exception):
    """Spring finds nobody to answer this: wrong path, method or media type.

    ``status`` is what releases up to 3.7 say; later ones answer 403 to all of it.
    """

    def __init__(self, status: int = 404, message: str = "Not Found") -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class SteveApi:
    """Answers requests out of a :class:`CentralSystem`.

    Attributes:
        operations: remote operations that were sent to a charge point, in order.
        online: charge boxes that take remote operations.
        is_open: nobody is asked for credentials: the development and test profiles up to 3.7, and any release
            behind a proxy that adds them.
    """

    def __init__(
        self,
        central: CentralSystem,
        lock: threading.RLock,
        *,
        username: str,
        password: str,
        api_key_header: str,
        api_enabled: bool,
        is_open: bool,
        context_path: str,
        cost_model: CostModel | None,
    ) -> None:
        self.central = central
        self.release = central.release
        self.lock = lock
        self.username = username
        self.password = password
        self.api_key_header = api_key_header
        self.api_enabled = api_enabled
        self.is_open = is_open
        self.context_path = context_path
        self.cost_model = cost_model
        self.online: set[str] = set()
        self.operations: list[RemoteOperation] = []
        self._writer = TransactionWriter(central.store, self.release)
        self._cached_user: tuple[str, str, bool] | None = None
        self._cached_until_ms = 0

    # -- the outside ---------------------------------------------------------------------------

    def handle(self, request: Request) -> Response:
        """The answer to any request to StEvE's port."""
        head = len(request.method) + len(request.url) + 12
        if head > MAX_HEAD_BYTES:
            return _jetty_page(414, "URI Too Long")
        if head + sum(len(name) + len(value) + 4 for name, value in request.headers.items()) > MAX_HEAD_BYTES:
            return _jetty_page(431, "Request Header Fields Too Large")
        if request.path != self.context_path and not request.path.startswith(f"{self.context_path}/"):
            return _jetty_page(404, "Not Found")
        path = request.path.removeprefix(self.context_path)
        if not path.startswith("/api/"):
            return self._web_page(request, path)
        refusal = self._authenticate(request)
        if refusal is not None:
            return self._timed(refusal, "refused")
        try:
            return self._route(request, [unquote(part) for part in path.split("/")[1:]])
        except NoRouteError as error:
            return self._timed(self._no_route(request, error), "refused")
        except BadParameterError as error:
            return self._timed(self._problem(request, 400, str(error)), "refused")
        except ApiError as error:
            return self._timed(self._problem(request, error.status, error.message), "other")

    def _web_page(self, request: Request, path: str) -> Response:
        """The pages for people, as far as an API client can stumble into them."""
        if path in {"", "/"}:
            absolute = not self.release.basic_auth
            return self._redirect(request, self.release.home_path, absolute=absolute)
        if path == "/manager/signin":
            page = b"<!DOCTYPE html><html><head><title>SteVe</title></head><body><form></form></body></html>"
            return Response(200, {"content-type": "text/html;charset=utf-8"}, page)
        return self._redirect_to_sign_in(request)

    def _redirect_to_sign_in(self, request: Request) -> Response:
        absolute = not self.release.forbidden_has_body
        return self._redirect(request, "/manager/signin", absolute=absolute)

    def _redirect(self, request: Request, path: str, *, absolute: bool) -> Response:
        base = _origin(request) if absolute else ""
        return Response(302, {"location": f"{base}{self.context_path}{path}"})

    def _timed(self, response: Response, call: Call, rows: int = 0) -> Response:
        if self.cost_model is not None:
            history = self.central.store.alive_count
            response.delay_s = self.cost_model.delay_s(self.release, call, history=history, rows=rows)
        return response

    # -- refusals ------------------------------------------------------------------------------

    def _problem(self, request: Request, status: int, message: str) -> Response:
        body = {
            "timestamp": iso_ms(self.central.now_ms()),
            "status": status,
            "error": ERRORS[status],
            "message": message,
            "path": f"{_origin(request)}{request.path}",
        }
        return self._json(ordered(body, self.release), status)

    def _no_route(self, request: Request, error: NoRouteError) -> Response:
        """The container's own answer; it explains itself in JSON to GET and POST that accept it."""
        explains = JSON in request.headers.get("accept", "") and request.method in {"GET", "POST"}
        if not self.release.missing_is_forbidden:
            if not explains:
                return Response(error.status)
            body = {
                "servlet": "spring-dispatcher",
                "message": html.escape(error.message).replace("&#x27;", "&apos;"),
                "url": request.path,
                "status": str(error.status),
            }
            return self._json(body, error.status)
        if not explains or not self.release.forbidden_has_body:
            return Response(403)
        url = html.escape(f"{_origin(request)}{request.url}")
        return self._json({"message": "Forbidden", "url": url, "status": "403"}, 403)

    def _json(self, value: Any, status: int = 200) -> Response:
        return Response(status, {"content-type": JSON}, dumps(value).encode())

    # -- authentication ------------------------------------------------------------------------

    def _authenticate(self, request: Request) -> Response | None:
        """The refusal, or None when the request may pass."""
        if self.is_open:
            return None
        if not self.release.basic_auth:
            return self._check_api_key(request)
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "basic":
            return self._redirect_to_sign_in(request)
        try:
            username, _, password = base64.b64decode(token, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return self._problem(request, 401, "Failed to decode basic authentication token")
        if not username or not password:
            return self._problem(request, 401, "Required parameters missing")
        known, theirs, enabled = self._web_user()
        if username != known or not enabled:
            return self._problem(request, 401, UNKNOWN_USER)
        if password != theirs:
            return self._problem(request, 401, "Invalid password")
        return None

    def _web_user(self) -> tuple[str, str, bool]:
        """(name, API password, whether they may use the API), as StEvE remembers it."""
        now_ms = self.central.now_ms()
        if self._cached_user is None or now_ms >= self._cached_until_ms:
            self._cached_user = (self.username, self.password, self.api_enabled)
            self._cached_until_ms = now_ms + USER_CACHE_MS
        return self._cached_user

    def forget_users(self) -> None:
        """Read web users anew, as after a restart of StEvE."""
        self._cached_user = None

    def _check_api_key(self, request: Request) -> Response | None:
        if not self.api_enabled:
            # The filter fails before anything could turn its exception into JSON.
            message = (
                "org.springframework.security.authentication.DisabledException: Web APIs are not exposed"
            )
            return _jetty_page(500, message)
        if request.headers.get(self.api_key_header.lower()) != self.password:
            message = "Full authentication is required to access this resource"
            return self._problem(request, 401, message)
        return None

    # -- routes --------------------------------------------------------------------------------

    def _route(self, request: Request, parts: list[str]) -> Response:
        match parts:
            case ["api", "v1", "transactions"]:
                return self._act(request, {"GET": self._transactions})
            case ["api", "v1", "transactions", "reports", "csv"] if self.release.details:
                return self._act(request, {"GET": self._report}, produces="text/csv")
            case ["api", "v1", "transactions", pk] if self.release.details:
                return self._act(request, {"GET": lambda r: self._details(r, pk)})
            case ["api", "v1", "transactions", pk, "stop"] if self.release.details:
                return self._act(request, {"PATCH": lambda _: self._manual_stop(pk)})
            case ["api", "v1", "ocppTags"]:
                return self._act(request, {"GET": self._tags, "POST": self._create_tag})
            case ["api", "v1", "ocppTags", pk]:
                acts: dict[str, Callable[[Request], Response]] = {
                    "GET": lambda _: self._tag(pk),
                    "PUT": lambda r: self._replace_tag(r, pk),
                    "DELETE": lambda _: self._delete_tag(pk),
                }
                return self._act(request, acts)
            case ["api", "v1", "operations", name] if self.release.operations and name in OPERATIONS:
                return self._act(request, {"POST": lambda r: self._operation(r, name)})
            case _:
                raise NoRouteError

    def _act(
        self, request: Request, acts: dict[str, Callable[[Request], Response]], produces: str = JSON
    ) -> Response:
        act = acts.get("GET" if request.method == "HEAD" else request.method)
        if act is None:
            raise NoRouteError(405, f"Request method '{request.method}' not supported")
        if request.method in {"POST", "PUT"}:
            sent = request.headers.get("content-type", "")
            if sent.partition(";")[0].strip().lower() != JSON:
                raise NoRouteError(415, f"Content type '{sent}' not supported")
        accepted = request.headers.get("accept", "*/*")
        major = produces.partition("/")[0]
        if not any(kind in accepted for kind in ("*/*", f"{major}/*", produces)):
            raise NoRouteError(406, "Not Acceptable")
        return act(request)

    def _path_pk(self, name: str, text: str) -> int:
        try:
            number = as_integer(text)
        except BadParameterError:
            number = None
        if number is None:
            cause = f'For input string: "{text}"'
            if self.release.nested_messages:
                cause = f"nested exception is java.lang.NumberFormatException: {cause}"
            conversion = "Failed to convert value of type 'java.lang.String' to required type 'int'"
            prefix = "" if self.release.nested_messages else f"Method parameter '{name}': "
            raise ApiError(400, f"{prefix}{conversion}; {cause}")
        return number

    # -- transactions --------------------------------------------------------------------------

    def _transaction_writer(self) -> TransactionWriter:
        if not self._writer.belongs_to(self.central.store):
            self._writer = TransactionWriter(self.central.store, self.release)
        return self._writer

    def _transactions(self, request: Request) -> Response:
        query = bind(request, self.release)
        when = window(query, self.release, self.central.now_ms())
        rows = select(self.central.store, query, when)
        writer = self._transaction_writer()
        response = Response(200, {"content-type": JSON})
        if len(rows) > ROWS_PER_CHUNK:
            response.chunks = writer.chunks(rows, self.lock)
        else:
            response.body = writer.array(rows)
        call: Call = "all" if when is None else "window"
        if query.pks:
            call = "by_id"
        elif query.type == "ACTIVE":
            call = "active"
        return self._timed(response, call, len(rows))

    def _details(self, request: Request, pk: str) -> Response:
        number = self._path_pk("transactionPk", pk)
        energy_only = energy_values_only(request) if self.release.energy_only_parameter else True
        row = self.central.store.row_of(number)
        if row is None:
            raise ApiError(404, f"There is no transaction with id '{number}'")
        values = [meter_value_object(v) for v in self.central.details(row, energy_only=energy_only)]
        body = f'{{"transaction":{self._transaction_writer().row(row)},"values":{dumps(values)}}}'
        return self._timed(Response(200, {"content-type": JSON}, body.encode()), "by_id", 1)

    def _manual_stop(self, pk: str) -> Response:
        number = self._path_pk("transactionPk", pk)
        try:
            self.central.manual_stop(number)
        except UnknownTransactionError as error:
            raise ApiError(404, f"There is no transaction with id '{number}'") from error
        return self._timed(Response(200), "by_id", 1)

    def _report(self, request: Request) -> Response:
        """The CSV report; whatever is wrong with its parameters looks like a missing route."""
        try:
            first = parse_ms(request.first("from") or "", local=False, zone_required=True)
            last = parse_ms(request.first("to") or "", local=False, zone_required=True)
        except ValueError as error:
            raise NoRouteError from error
        if last <= first:
            raise NoRouteError
        store = self.central.store
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        connector_column = "evse_pk" if self.release.evse else "connector_pk"
        writer.writerow(["transaction_pk", connector_column, *CSV_COLUMNS])
        rows = [row for row in store.by_stop.between(first, last - 1) if row not in store.raw]
        for row in sorted(rows, key=lambda row: (store.start_ms[row], row)):
            writer.writerow(
                [
                    store.ids[row],
                    store.connectors[store.connector_of[row]].pk,
                    store.tag_texts[store.tag_text_of[row]],
                    iso_ms(store.start_event_ms[row]),
                    iso_ms(store.start_ms[row]),
                    store.start_wh[row],
                    ACTORS[store.actor[row]],
                    iso_ms(store.stop_event_ms[row]),
                    iso_ms(store.stop_ms[row]),
                    store.stop_wh[row],
                    store.reasons[store.reason[row]] or _CSV_NULL,
                ]
            )
        text = out.getvalue().replace(_CSV_NULL, '""')
        headers = {
            "content-type": "text/csv;charset=iso-8859-1",
            "content-disposition": 'attachment; filename="transaction_report.csv"',
        }
        return self._timed(Response(200, headers, text.encode("latin-1", "replace")), "window", len(rows))

    # -- tags ----------------------------------------------------------------------------------

    def _tag_response(self, tag: Tag, status: int = 200) -> Response:
        active = self.central.store.active_counts().get(tag.pk, 0)
        value = tag_object(tag, self.central.store, active, self.release)
        return self._timed(self._json(value, status), "tags")

    def _tags(self, request: Request) -> Response:
        keep = self._tag_filter(request)
        store, counts = self.central.store, self.central.store.active_counts()
        tags = [tag for tag in store.tags.values() if keep(tag, counts.get(tag.pk, 0))]
        objects = [
            tag_object(tag, store, counts.get(tag.pk, 0), self.release) | store.tag_faces.get(tag.pk, {})
            for tag in tags
        ]
        return self._timed(self._json(objects), "tags")

    def _tag_filter(self, request: Request) -> Callable[[Tag, int], bool]:
        pk = as_integer(request.first("ocppTagPk"))
        id_tag, parent = request.first("idTag"), request.first("parentIdTag")
        expired, in_transaction, blocked = (
            _three_way(request, name) for name in ("expired", "inTransaction", "blocked")
        )
        user, note, user_filter = None, "", "All"
        if self.release.tag_user:
            user, note = as_integer(request.first("userId")), request.first("note") or ""
            user_filter = request.first("userFilter") or "All"
        if user_filter not in {"All", "OnlyTagsWithUser", "OnlyTagsWithoutUser"}:
            raise BadParameterError
        parent_tag = self.central.store.find_tag(parent) if parent else None
        now_ms = self.central.now_ms()

        def keep(tag: Tag, active: int) -> bool:
            return (
                pk in {None, tag.pk}
                and (not id_tag or collation_key(id_tag) == collation_key(tag.id_tag))
                and (not parent or (parent_tag is not None and tag.parent_pk == parent_tag.pk))
                and expired in {None, tag.expiry_ms is not None and tag.expiry_ms <= now_ms}
                and in_transaction in {None, active > 0}
                and blocked in {None, tag.max_active == 0}
                and user in {None, tag.user_pk}
                and collation_key(note) in collation_key(tag.note or "")
                and user_filter
                in {"All", "OnlyTagsWithoutUser" if tag.user_pk is None else "OnlyTagsWithUser"}
            )

        return keep

    def _tag(self, pk: str) -> Response:
        tag = self.central.store.tags.get(self._path_pk("ocppTagPk", pk))
        if tag is None:
            raise ApiError(404, "Could not find this ocppTag")
        return self._tag_response(tag)

    def _create_tag(self, request: Request) -> Response:
        id_tag, fields = self._tag_form(request)
        try:
            tag = self.central.store.add_tag(id_tag, **fields)
        except DuplicateTagError as error:
            raise ApiError(422, self.release.duplicate_tag_message.format(id_tag)) from error
        return self._tag_response(tag, 201)

    def _replace_tag(self, request: Request, pk: str) -> Response:
        number = self._path_pk("ocppTagPk", pk)
        _, fields = self._tag_form(request)
        try:
            tag = self.central.store.replace_tag(number, **fields)
        except UnknownTagError as error:
            raise ApiError(404, "Could not find this ocppTag") from error
        except UnknownParentError as error:
            raise ApiError(500, "Execution of the update failed") from error
        return self._tag_response(tag)

    def _delete_tag(self, pk: str) -> Response:
        number = self._path_pk("ocppTagPk", pk)
        tag = self.central.store.tags.get(number)
        if tag is None:
            raise ApiError(404, "Could not find this ocppTag")
        response = self._tag_response(tag)
        try:
            self.central.store.delete_tag(number)
        except TagIsParentError as error:
            raise ApiError(500, "Execution of the deletion failed") from error
        return response

    def _tag_form(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The tag's text and the fields of :meth:`SteveStore.replace_tag`; what is omitted is reset.

        Raises:
            ApiError: 500 for what cannot be read, 400 for what can but is not allowed.
        """
        form = self._body(request)
        try:
            raw_count, raw_expiry = form.get("maxActiveTransactionCount"), form.get("expiryDate")
            max_active = 1 if raw_count is None else int(raw_count)
            expiry_ms = None if raw_expiry is None else parse_ms(raw_expiry, local=self.release.local_dates)
        except (TypeError, ValueError) as error:
            raise ApiError(500, "JSON parse error: Cannot deserialize value") from error
        mark = "#" if self.release.tag_hash_allowed else ""
        pattern = rf"[a-zA-Z0-9.:_{mark}-]{{1,20}}"
        id_tag, parent = form.get("idTag"), form.get("parentIdTag")
        past = expiry_ms is not None and expiry_ms <= self.central.now_ms()
        if past or not isinstance(id_tag, str) or not re.fullmatch(pattern, id_tag):
            raise ApiError(400, "Error understanding the request")
        note = form.get("note")
        return id_tag, {"parent": parent, "max_active": max_active, "expiry_ms": expiry_ms, "note": note}

    def _body(self, request: Request) -> dict[str, Any]:
        try:
            form = request.json()
        except json.JSONDecodeError as error:
            raise ApiError(500, self._unreadable(request.body, error)) from error
        except UnicodeDecodeError as error:
            raise ApiError(500, "JSON parse error: Invalid UTF-8") from error
        if not isinstance(form, dict):
            raise ApiError(500, "JSON parse error: Cannot deserialize value")
        return form

    def _unreadable(self, body: bytes, error: json.JSONDecodeError) -> str:
        ended = error.pos >= len(body.decode())
        cause = "Unexpected end-of-input within/between Object entries" if ended else "Unexpected character"
        if not self.release.nested_messages:
            return f"JSON parse error: {cause}"
        kind = "com.fasterxml.jackson.core.io.JsonEOFException" if ended else _JACKSON_PARSE_EXCEPTION
        source = "REDACTED (`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled)"
        where = f"[Source: {source}; line: {error.lineno}, column: {error.colno}]"
        return f"JSON parse error: {cause}; nested exception is {kind}: {cause}\n at {where}"

    # -- remote operations ---------------------------------------------------------------------

    def _operation(self, request: Request, name: str) -> Response:
        form = self._body(request)
        result = operate(name, form, self.central, self.online, self.operations)
        if isinstance(result, str):
            raise ApiError(400, result)
        return self._timed(self._json(ordered(result, self.release)), "other")


_JACKSON_PARSE_EXCEPTION = "com.fasterxml.jackson.core.JsonParseException"
_CSV_NULL = "\x00"


def _three_way(request: Request, name: str) -> bool | None:
    text = request.first(name) or "ALL"
    if text not in {"ALL", "TRUE", "FALSE"}:
        raise BadParameterError
    return None if text == "ALL" else text == "TRUE"


def _origin(request: Request) -> str:
    return f"http://{request.headers.get('host', 'localhost')}"


def _jetty_page(status: int, message: str) -> Response:
    title = f"Error {status} {html.escape(message)}"
    page = f"<html><head><title>{title}</title></head><body><h2>{title}</h2></body></html>\n"
    return Response(status, {"content-type": "text/html;charset=iso-8859-1"}, page.encode())
