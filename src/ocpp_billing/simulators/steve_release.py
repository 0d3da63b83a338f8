"""What one StEvE release does and does not do, as questions with a yes or no.

Boundaries come from StEvE's tags and from answers of real servers (3.7.1, 3.9.0, 3.12.0, 3.14.1). Where
neither says anything about a release, that is a guess: 3.6 behaves like 3.7.1, 3.8 to 3.11 like 3.9.0, and
3.13 like 3.14.1.
"""

from __future__ import annotations

from dataclasses import dataclass

KNOWN: dict[str, tuple[int, int, int]] = {
    "3.6": (3, 6, 0),
    "3.7": (3, 7, 1),
    "3.8": (3, 8, 0),
    "3.9": (3, 9, 0),
    "3.10": (3, 10, 0),
    "3.11": (3, 11, 0),
    "3.12": (3, 12, 0),
    "3.13": (3, 13, 0),
    "3.14": (3, 14, 1),
}
OTHERS = ((3, 7, 0), (3, 14, 0))
MINORS = tuple(KNOWN)


@dataclass(frozen=True, slots=True)
class Release:
    """One release of StEvE."""

    version: tuple[int, int, int]

    @classmethod
    def parse(cls, text: str) -> Release:
        """The release of a minor (``3.9``) or full version (``3.14.0``); a minor means its last patch.

        Raises:
            ValueError: for a version without a REST API (before 3.6) or one that never existed.
        """
        if text in KNOWN:
            return cls(KNOWN[text])
        versions = {".".join(map(str, v)): v for v in (*KNOWN.values(), *OTHERS)}
        if text in versions:
            return cls(versions[text])
        raise ValueError(f"StEvE {text} is not simulated; choose one of {', '.join(MINORS)}")

    def __str__(self) -> str:
        return ".".join(map(str, self.version))

    def _since(self, minor: int, patch: int = 0) -> bool:
        return self.version >= (3, minor, patch)

    # -- authentication and errors -------------------------------------------------------------

    @property
    def basic_auth(self) -> bool:
        """HTTP Basic with bcrypt instead of the API-key header."""
        return self._since(8)

    @property
    def missing_is_forbidden(self) -> bool:
        """An authenticated request for what is not there is a 403, not a 404, 405, 406 or 415."""
        return self._since(8)

    @property
    def forbidden_has_body(self) -> bool:
        """That 403 explains itself in JSON, and redirects name a path (before: empty, absolute)."""
        return self._since(12)

    @property
    def nested_messages(self) -> bool:
        """Spring 5: messages of conversion errors carry the nested exception."""
        return not self._since(8)

    @property
    def sorted_keys(self) -> bool:
        """Keys of JSON objects come in alphabetical order."""
        return self._since(12)

    @property
    def duplicate_tag_message(self) -> str:
        """What a 422 of a tag's creation says, with a place for the tag."""
        if self._since(12):
            return "The idTag '{}' exists already."
        return "A user with idTag '{}' already exists."

    @property
    def home_path(self) -> str:
        """Where the root redirects to, below the context path."""
        return "/manager" if self._since(8) else "/manager/home"

    # -- the transactions query ----------------------------------------------------------------

    @property
    def stopped_type(self) -> bool:
        """``type=STOPPED`` exists."""
        return self._since(8)

    @property
    def period_field_by_type(self) -> bool:
        """3.8 and 3.9: FROM_TO looks at the stop for STOPPED and at nothing at all for ALL."""
        return self._since(8) and not self._since(10)

    @property
    def list_filters(self) -> bool:
        """Filters take several values, repeated or separated by commas."""
        return self._since(11)

    @property
    def connector_filter(self) -> bool:
        """``connectorId`` filters; older releases ignore it."""
        return self._since(9)

    @property
    def user_filter(self) -> bool:
        """``userId`` filters; older releases ignore it."""
        return self._since(8)

    @property
    def local_dates(self) -> bool:
        """``from``, ``to`` and ``expiryDate`` are local (UTC) and must not name a zone."""
        return not self._since(8)

    @property
    def dates_outside_storage_match_nothing(self) -> bool:
        """3.7.1: a ``from`` before 1970 finds nothing; that beyond 2038 is the same is a guess."""
        return not self._since(8)

    @property
    def slow_view(self) -> bool:
        """3.6: the view groups all stops ever, so that every call costs as much as the history is long."""
        return not self._since(7)

    # -- fields and routes ---------------------------------------------------------------------

    @property
    def transaction_user(self) -> bool:
        """Transactions carry ``userId``."""
        return self._since(9)

    @property
    def tag_user(self) -> bool:
        """Tags carry ``userPk`` and can be filtered by user and note."""
        return self._since(8)

    @property
    def tag_hash_allowed(self) -> bool:
        """``#`` is allowed in a tag that is created by the API."""
        return self._since(7)

    @property
    def details(self) -> bool:
        """Details, manual stop and CSV report exist."""
        return self._since(12)

    @property
    def energy_only_parameter(self) -> bool:
        """``energyValuesOnly`` can be switched off."""
        return self._since(13)

    @property
    def operations(self) -> bool:
        """Remote operations exist."""
        return self._since(11)

    @property
    def evse(self) -> bool:
        """The CSV report calls the connector ``evse_pk``; its numbers are used up by new ones only."""
        return self._since(13)

    # -- what charge points may do -------------------------------------------------------------

    @property
    def validates_stops(self) -> bool:
        """A stop that makes no sense is set aside and the transaction stays open for ever."""
        return self._since(12)

    @property
    def validates_transaction_data(self) -> bool:
        """3.12 and 3.13: so is one whose meter values do not fit its times."""
        return self._since(12) and not self._since(14)

    @property
    def validates_stop_tag(self) -> bool:
        """A stop with an unrelated tag is set aside; letter case counts."""
        return self._since(14, 1)

    @property
    def drops_late_meter_values(self) -> bool:
        """Meter values of a stopped or unknown transaction are dropped."""
        return self._since(14)

    @property
    def foreign_values_leak(self) -> bool:
        """Details show other transactions' meter values of the same connector and time."""
        return not self._since(13)

    @property
    def monotonic_manual_stop(self) -> bool:
        """A manual stop takes the last value of a rising run instead of the latest of all."""
        return self._since(14)

    @property
    def whole_second_events(self) -> bool:
        """Times of arrival are kept in whole seconds, so two stops in one second collide.

        Recorded on 3.12.0 (report) and on 3.7.1 and 3.9.0 (the second stop is lost).
        """
        return not self._since(13)

    @property
    def late_start_is_null(self) -> bool:
        """3.7.1: a start beyond 2038 is kept with a null start time; later releases refuse it."""
        return not self._since(8)
