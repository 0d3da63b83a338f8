"""Every setting: what it may be, what is said when it is something else, and that no secret is shown."""

from __future__ import annotations

import dataclasses
import itertools
import traceback
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocpp_billing.config import (
    Config,
    ConfigError,
    describe_settings,
    load_config,
    parse_instant,
    read_environment,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NO_FILE = {"OCPP_BILLING_ENV_FILE": ""}

# variable -> (good text and its value) ..., malformed texts, what it should look like
TEXT = [("anything at all", "anything at all")]
BOOLEAN: tuple[list[tuple[str, Any]], list[str], str] = (
    [
        *[(text, True) for text in ("true", "TRUE", "1", "yes", "on")],
        *[(text, False) for text in ("false", "False", "0", "no", "off")],
    ],
    ["maybe", "2", "truee", "y"],
    "true or false",
)
URLS = (
    [
        ("https://example.org", "https://example.org"),
        ("http://10.0.0.7:8180/steve/", "http://10.0.0.7:8180/steve"),
        ("https://[2001:db8::1]:8443/api", "https://[2001:db8::1]:8443/api"),
        ("https://example.org/?", "https://example.org"),
    ],
    [
        "example.org",
        "ftp://example.org",
        "https://",
        "https:///path",
        "http://example.org:port",
        "http://example.org:99999",
        "http://[::1",
        "https://exa mple.org",
        "https://example.org/?key=1",
        "https://example.org/#top",
        "https://example.org/\x00",
    ],
    "an address such as https://example.org",
)
ADDRESSES = (
    [
        ("ops@example.org", "ops@example.org"),
        ("ops+ev@example.org, cfo@example.org", "ops+ev@example.org,cfo@example.org"),
    ],
    ["ops", "ops@", "Ops <ops@example.org>", "ops@example.org;cfo@example.org", "a@b\nBcc: c@d", "a@b,,c@d"],
    "one or more e-mail addresses, separated by commas",
)
AMOUNT = (
    [("0", Decimal(0)), ("12.5", Decimal("12.5")), ("500", Decimal(500)), ("0.001", Decimal("0.001"))],
    ["-1", "NaN", "Infinity", "1e3", "1_000", "1,5", ".5", "5.", "+5", "0.0001", "1" * 10, "١٢", "1E+999999"],
    "a number of 0 or more with at most 3 decimals, such as 12.5",
)


def integer(low: int, high: int) -> tuple[list[tuple[str, Any]], list[str], str]:
    good = [(str(low), low), (str(high), high)]
    bad = [str(low - 1), str(high + 1), "1.5", "1e1", "1_0", "٣", "ten", "9" * 40]
    return good, bad, f"a whole number from {low} to {high}"


TABLE: dict[str, tuple[list[tuple[str, Any]], list[str], str]] = {
    "DATABASE_URL": (
        [
            (url, url)
            for url in (
                "postgresql://user:p%40ss@host:5432/ledger",
                "postgres://host/ledger",
                "postgresql:///ledger?host=/run/postgresql",
                "postgresql://one:5432,two:5433/ledger?target_session_attrs=read-write",
            )
        ],
        [
            "mysql://host/db",
            "host=h dbname=d",
            "ledger",
            "postgresql://user:%zz@host/d",
            "postgresql://[::1/d",
        ],
        "a PostgreSQL address such as postgresql://user:password@host:5432/database, with special characters",
    ),
    "OCPP_BILLING_DATA_DIR": (TEXT, [], ""),
    "OCPP_BILLING_PG_BIN": (TEXT, [], ""),
    "STEVE_API_URL": URLS,
    "STEVE_API_KEY": (TEXT, [], ""),
    "STEVE_API_USERNAME": (TEXT, [], ""),
    "STEVE_API_KEY_HEADER": (
        [("X-Api-Key", "X-Api-Key")],
        ["X Api Key", "X:Key", "K" * 65, "Schlüssel"],
        "a header name such as STEVE-API-KEY",
    ),
    "STEVE_SOURCE": (
        [("main", "main"), ("site-2", "site-2"), ("s" * 20, "s" * 20)],
        ["Main", "s" * 21, "a b", "a:b", "a_b", "ä"],
        "1 to 20 characters of a-z, 0-9 and -",
    ),
    "STEVE_RELEASE": (
        [("3.9", "3.9"), ("3.14.1", "3.14.1")],
        ["3", "4.0", "3.9.", "v3.9", "3.9-SNAPSHOT", "3.٩"],
        "a StEvE release such as 3.9 or 3.14.1",
    ),
    "STEVE_READ_TIMEOUT_SECONDS": integer(1, 3600),
    "LAGO_API_URL": URLS,
    "LAGO_API_KEY": (TEXT, [], ""),
    "LAGO_FRONT_URL": URLS,
    "LAGO_METRIC_CODE": (
        [("ev_charging_kwh", "ev_charging_kwh"), ("a.b:c-d", "a.b:c-d")],
        ["ev kwh", "m" * 101, "kWh/day"],
        "a billable metric code such as ev_charging_kwh",
    ),
    "LAGO_SEND_ID_TAG": BOOLEAN,
    "LAGO_READ_TIMEOUT_SECONDS": integer(1, 600),
    "BILLING_START": (
        [
            (text, text)
            for text in ("2026-12-01", "2026-12-01T06:00", "2026-12-01T06:00:00+01:00", "2026-12-01T05:00Z")
        ],
        [
            "tomorrow",
            "01.12.2026",
            "2026-13-01",
            "2026-02-30",
            "1764547200",
            "0001-01-01",
            "9999-12-31T23:59-05:00",
        ],
        "a date such as 2026-12-01, or a date-time such as 2026-12-01T06:00:00+01:00",
    ),
    "LATE_POLICY": (
        [(text, text) for text in ("hold", "current_period")],
        ["Hold", "drop"],
        "hold or current_period",
    ),
    "MAX_SESSION_KWH": AMOUNT,
    "MAX_POWER_KW": AMOUNT,
    "MAX_SESSION_HOURS": AMOUNT,
    "MIN_SESSION_KWH": AMOUNT,
    "MAX_AUTO_CORRECTION_KWH": AMOUNT,
    "STUCK_AFTER_HOURS": integer(1, 8760),
    "DELIVERY_EVENTS_PER_SECOND": integer(0, 100_000),
    "DELIVERY_CONCURRENCY": integer(1, 16),
    "CONFIRM_SETTLE_SECONDS": integer(0, 86_400),
    "SYNC_CRON_SCHEDULE": (
        [(text, text) for text in ("*/15 * * * *", "0 3 * * MON-FRI", "0 0 L * *", "30 2 29 2 *")],
        ["hourly", "* * * *", "* * * * * *", "60 * * * *", "*/0 * * * *", "0 0 31 2 *", "0 0 */31 * 1#5"],
        "a cron schedule of five fields, such as */15 * * * *",
    ),
    "SYNC_TIMEZONE": (
        [(text, text) for text in ("UTC", "Europe/Berlin", "America/New_York")],
        ["Berlin", "Europe", "CEST", "../../etc/passwd", "/etc/localtime", "Europe/Berl\x00in"],
        "a time zone name such as Europe/Berlin",
    ),
    "SYNC_ON_STARTUP": BOOLEAN,
    "SYNC_WATCH_SECONDS": integer(0, 3600),
    "RUN_RETENTION_DAYS": integer(1, 36_500),
    "RUN_WATCH_RETENTION_DAYS": integer(1, 36_500),
    "ALERT_EMAIL_TO": ADDRESSES,
    "ALERT_WEBHOOK_URL": (
        [
            ("https://example.org/hook", "https://example.org/hook"),
            ("https://example.org/hook?sig=a%2Fb&x=1", "https://example.org/hook?sig=a%2Fb&x=1"),
        ],
        [
            "example.org",
            "https://example.org/?a=1#b",
            "https://example.org/?a b",
            "https://u:p@example.org/?a",
        ],
        "an address",
    ),
    "ALERT_WEBHOOK_SECRET": (
        [("s" * 32, "s" * 32)],
        ["s" * 31, "changeme"],
        "a random text of at least 32 characters",
    ),
    "ALERT_HELD_DAYS": integer(1, 3650),
    "ALERT_OUTAGE_MINUTES": integer(0, 10_080),
    "ALERT_WORKER_SECONDS": integer(30, 86_400),
    "EMAIL_HOST": (TEXT, [], ""),
    "EMAIL_PORT": integer(1, 65_535),
    "EMAIL_SECURITY": (
        [(text, text) for text in ("starttls", "tls", "none")],
        ["ssl", "TLS"],
        "starttls or tls or none",
    ),
    "EMAIL_USERNAME": (TEXT, [], ""),
    "EMAIL_PASSWORD": (TEXT, [], ""),
    "EMAIL_FROM": ADDRESSES,
    "AUTH_SECRET": (
        [("s" * 32, "s" * 32)],
        ["s" * 31, "changeme"],
        "a random text of at least 32 characters",
    ),
    "AUTH_URL": URLS,
    "LOG_LEVEL": (
        [(text, text) for text in ("debug", "info", "warning", "error")],
        ["INFO", "trace"],
        "debug or info or warning or error",
    ),
    "LOG_FORMAT": ([(text, text) for text in ("console", "json")], ["xml"], "console or json"),
}
GOOD = [(name, text, value) for name, (good, _, _) in TABLE.items() for text, value in good]
BAD = [(name, text, expected) for name, (_, bad, expected) in TABLE.items() for text in bad]
NAMES = [field.name.upper() for field in dataclasses.fields(Config)]
SECRETS = [name for name in NAMES if name.endswith(("_KEY", "_SECRET", "_URL"))]


def load(**environment: str) -> Config:
    return load_config({**NO_FILE, **environment})


def problems(**environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(**environment)
    return caught.value.problems


def complaint(read: Callable[[], object], expected: type[Exception]) -> str:
    """What is said when it cannot be read; nothing when it can."""
    try:
        read()
    except expected as error:
        return str(error)
    return ""


def test_this_table_knows_every_setting():
    assert [*TABLE] == NAMES


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_a_good_value_is_taken(name, text, value):
    read = getattr(load(**{name: text}), name.lower())
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(("name", "text", "expected"), BAD)
def test_a_malformed_value_is_named_with_what_it_should_look_like(name, text, expected):
    (problem,) = problems(**{name: text})
    assert problem.startswith(f"{name} ")
    assert f"must be {expected}" in problem


@pytest.mark.parametrize("name", [name for name, (_, bad, _) in TABLE.items() if bad and name not in SECRETS])
def test_a_malformed_value_that_is_no_secret_is_quoted(name):
    text = TABLE[name][1][0]
    assert repr(text) in problems(**{name: text})[0]


def test_all_malformed_values_are_reported_at_once():
    found = problems(SYNC_ON_STARTUP="maybe", LATE_POLICY="drop", LAGO_API_URL="lago")
    assert [problem.split()[0] for problem in found] == ["LAGO_API_URL", "LATE_POLICY", "SYNC_ON_STARTUP"]


def test_the_error_has_a_line_for_each_problem():
    assert str(ConfigError(["A is not set.", "B must be C."])) == "A is not set.\nB must be C."


class TestDefaults:
    def test_nothing_has_to_be_set(self):
        assert load() is not None

    @pytest.mark.parametrize("name", NAMES)
    def test_a_default_is_a_good_value_itself(self, name):
        default = getattr(load(), name.lower())
        if default is not None:
            assert getattr(load(**{name: str(default)}), name.lower()) == default

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("text", ["", "  ", "\t"])
    def test_an_empty_variable_counts_as_unset(self, name, text):
        assert getattr(load(**{name: text}), name.lower()) == getattr(load(), name.lower())

    def test_those_that_the_user_named_are_the_users(self):
        config = load()
        assert config.lago_api_url == "https://api.getlago.com"
        assert config.lago_metric_code == "ev_charging_kwh"
        assert config.auth_url == "http://localhost:8000"
        assert config.sync_cron_schedule == "*/15 * * * *"
        assert config.sync_on_startup is False
        assert config.steve_api_key_header == "STEVE-API-KEY"

    def test_those_that_design_fixed_are_designs(self):
        config = load()
        assert (config.steve_source, config.sync_watch_seconds, config.late_policy) == ("main", 15, "hold")
        assert (config.delivery_events_per_second, config.delivery_concurrency) == (50, 2)
        assert (config.max_session_kwh, config.max_power_kw, config.max_session_hours) == (500, 400, 72)
        assert (config.min_session_kwh, config.max_auto_correction_kwh) == (0, 50)
        assert config.confirm_settle_seconds == 60
        assert config.lago_send_id_tag is False

    def test_without_a_start_billing_is_not_live(self):
        assert load().billing_start_at is None


class TestSpelling:
    @pytest.mark.parametrize("name", NAMES)
    def test_blanks_around_a_value_do_not_count(self, name):
        text, value = TABLE[name][0][0]
        assert getattr(load(**{name: f"  {text}\n"}), name.lower()) == value

    def test_unknown_variables_are_none_of_our_business(self):
        assert load(PATH="/usr/bin", LAGO_COLOUR="blue") == load()

    def test_only_upper_case_names_count(self):
        assert load(steve_source="other").steve_source == "main"


class TestSecrets:
    MARK = "hunter2-and-much-more-of-the-same-kind"

    @pytest.mark.parametrize("name", ["STEVE_API_KEY", "LAGO_API_KEY", "AUTH_SECRET", "DATABASE_URL"])
    def test_none_is_shown_with_the_settings(self, name):
        text = f"postgresql://user:{self.MARK}@host/ledger" if name == "DATABASE_URL" else self.MARK
        config = load(**{name: text})
        assert self.MARK not in f"{config} {config!r} {[config]}"

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("AUTH_SECRET", "hunter2"),
            ("DATABASE_URL", "mysql://user:hunter2@host/d"),
            ("DATABASE_URL", "postgresql://user:hunter2%zz@host/d"),
            ("DATABASE_URL", "postgresql://user:hunter2\u2100@[host/d"),
            ("DATABASE_URL", "host=h password=hunter2"),
            ("STEVE_API_URL", "https://admin:hunter2@example.org"),
            ("STEVE_API_URL", "https://admin:hunter2@example.org:port"),
            ("STEVE_API_URL", "https://admin:hunter2@ex\u2100ample.org"),
            ("LAGO_API_URL", "https://hunter2@example.org"),
            ("LAGO_API_URL", "https://:@hunter2.example.org"),
            ("AUTH_URL", "https://example.org/?key=hunter2"),
        ],
    )
    def test_none_is_quoted_in_an_error(self, name, text):
        with pytest.raises(ConfigError) as caught:
            load(**{name: text})
        shown = "".join(traceback.format_exception(caught.value))
        assert "hunter2" not in shown
        assert name in shown

    def test_an_address_with_a_password_is_refused_for_it(self):
        (problem,) = problems(STEVE_API_URL="https://admin:hunter2@example.org")
        assert problem == "STEVE_API_URL must be an address without a user name or password in it."

    @settings(max_examples=200)
    @given(
        st.sampled_from(SECRETS),
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30),
    )
    def test_whatever_is_set_is_either_taken_or_named_without_quoting_it(self, name, text):
        said = complaint(lambda: load(**{name: f"{text}://u:hunter2{text}@h/{text}"}), ConfigError)
        assert "hunter2" not in said
        assert not said or said.startswith(f"{name} must be ")


class TestEnvFile:
    @pytest.fixture(autouse=True)
    def somewhere_else(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    def test_settings_come_from_it(self, tmp_path):
        (tmp_path / ".env").write_text("# a comment\nSTEVE_SOURCE=site-2\nexport SYNC_ON_STARTUP='true'\n")
        config = load_config({})
        assert (config.steve_source, config.sync_on_startup) == ("site-2", True)

    def test_the_environment_goes_before_it(self, tmp_path):
        (tmp_path / ".env").write_text("STEVE_SOURCE=from-file\nLOG_LEVEL=debug\n")
        config = load_config({"STEVE_SOURCE": "from-environment"})
        assert (config.steve_source, config.log_level) == ("from-environment", "debug")

    def test_a_variable_set_to_nothing_hides_the_one_in_it(self, tmp_path):
        (tmp_path / ".env").write_text("BILLING_START=2026-12-01\n")
        assert load_config({"BILLING_START": ""}).billing_start is None

    def test_another_one_can_be_named(self, tmp_path):
        (tmp_path / ".env").write_text("STEVE_SOURCE=one\n")
        (tmp_path / "other.env").write_text("STEVE_SOURCE=two\n")
        assert load_config({"OCPP_BILLING_ENV_FILE": "other.env"}).steve_source == "two"

    def test_none_is_read_when_none_is_named(self, tmp_path):
        (tmp_path / ".env").write_text("STEVE_SOURCE=site-2\n")
        assert load_config(NO_FILE).steve_source == "main"

    def test_it_need_not_be_there(self):
        assert load_config({}).steve_source == "main"

    def test_one_that_is_named_must_be_there(self):
        with pytest.raises(ConfigError, match=r"^The settings in gone\.env cannot be read: No such file"):
            load_config({"OCPP_BILLING_ENV_FILE": "gone.env"})

    def test_one_that_is_no_text_is_named(self, tmp_path):
        (tmp_path / ".env").write_bytes(b"STEVE_API_KEY=\xff\xfe\n")
        with pytest.raises(
            ConfigError, match=r"^The settings in \.env cannot be read: it is not UTF-8 text\.$"
        ):
            load_config({})

    def test_a_mark_that_some_editors_put_first_does_not_count(self, tmp_path):
        (tmp_path / ".env").write_text("STEVE_SOURCE=site-2\n", encoding="utf-8-sig")
        assert load_config({}).steve_source == "site-2"

    def test_a_name_without_a_value_sets_nothing(self, tmp_path):
        (tmp_path / ".env").write_text("STEVE_SOURCE\nLOG_LEVEL=\n")
        assert read_environment({}) == {"LOG_LEVEL": ""}

    def test_what_is_malformed_in_it_is_named_too(self, tmp_path):
        (tmp_path / ".env").write_text("LATE_POLICY=drop\n")
        with pytest.raises(ConfigError, match="LATE_POLICY is 'drop', but must be hold or current_period"):
            load_config({})

    def test_without_arguments_it_is_the_environment_of_the_process(self, monkeypatch):
        monkeypatch.setenv("STEVE_SOURCE", "site-3")
        assert load_config().steve_source == "site-3"


class TestWhatIsDerived:
    def test_the_time_zone_is_the_named_one(self):
        assert load(SYNC_TIMEZONE="Europe/Berlin").timezone == ZoneInfo("Europe/Berlin")

    def test_a_start_without_a_zone_is_in_the_time_zone_of_the_settings(self):
        config = load(BILLING_START="2026-12-01", SYNC_TIMEZONE="Europe/Berlin")
        assert config.billing_start_at == datetime(2026, 11, 30, 23, tzinfo=UTC)

    def test_settings_do_not_change(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            load().late_policy = "current_period"  # type: ignore[misc]

    def test_what_is_missing_is_named_with_its_meaning(self):
        config = load(LAGO_API_KEY="key")
        (problem,) = config.missing("LAGO_API_KEY", "STEVE_API_URL")
        assert problem.startswith(
            "STEVE_API_URL is not set: Address of StEvE, with or without its context path"
        )

    def test_every_setting_is_described_once_with_its_default_and_meaning(self):
        described = {name: (default, says) for _, rows in describe_settings() for name, default, says in rows}
        assert sorted(described) == sorted(NAMES)
        assert all(says for _, says in described.values())
        assert described["SYNC_ON_STARTUP"][0] == "false"
        assert described["STEVE_API_URL"][0] == ""
        assert described["MAX_POWER_KW"][0] == "400"

    def test_a_described_default_set_as_it_is_described_changes_nothing(self):
        assert (
            load(**{name: default for _, rows in describe_settings() for name, default, _ in rows}) == load()
        )


# -- instants ----------------------------------------------------------------------------------------

BERLIN = ZoneInfo("Europe/Berlin")
FIRST, LAST = datetime.fromisoformat("0002-01-01"), datetime.fromisoformat("9998-12-31")


class TestParseInstant:
    @pytest.mark.parametrize("zone", [UTC, BERLIN, ZoneInfo("Asia/Kathmandu")])
    def test_a_date_is_midnight_in_the_zone(self, zone):
        assert parse_instant("2026-12-01", zone) == datetime(2026, 12, 1, tzinfo=zone)

    def test_a_date_time_is_in_the_zone(self):
        assert parse_instant("2026-12-01T06:00", BERLIN) == datetime(2026, 12, 1, 5, tzinfo=UTC)

    @pytest.mark.parametrize(
        "text", ["2026-12-01T06:00:00+01:00", "2026-12-01T05:00:00Z", "2026-12-01 05:00+00:00"]
    )
    def test_an_offset_goes_before_the_zone(self, text):
        assert parse_instant(text, ZoneInfo("Asia/Tokyo")) == datetime(2026, 12, 1, 5, tzinfo=UTC)

    def test_it_is_told_in_utc(self):
        assert parse_instant("2026-12-01", BERLIN).tzinfo is UTC

    def test_a_time_that_the_clocks_skip_is_counted_from_before(self):
        assert parse_instant("2026-03-29T02:30", BERLIN) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)

    def test_a_time_that_comes_twice_is_the_first(self):
        assert parse_instant("2026-10-25T02:30", BERLIN) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)

    def test_a_day_whose_midnight_is_skipped_begins_with_its_first_instant(self):
        zone = ZoneInfo("America/Sao_Paulo")
        begins = parse_instant("2018-11-04", zone)
        assert begins == datetime(2018, 11, 4, 3, tzinfo=UTC)
        assert begins.astimezone(zone).date() > (begins - timedelta(seconds=1)).astimezone(zone).date()

    def test_a_day_whose_midnight_comes_twice_begins_with_the_first(self):
        assert parse_instant("2026-11-01", ZoneInfo("America/Havana")) == datetime(2026, 11, 1, 4, tzinfo=UTC)

    @given(st.text(max_size=30), st.sampled_from([UTC, BERLIN]))
    def test_any_text_is_an_instant_or_told_what_one_looks_like(self, text, zone):
        said = complaint(lambda: parse_instant(text, zone), ValueError)
        assert not said or said.startswith("a date such as 2026-12-01")

    @given(st.datetimes(), st.sampled_from(["", "Z", "+14:00", "-12:00"]))
    def test_every_date_time_is_an_instant_but_for_the_first_and_the_last_year(self, at, offset):
        text, zone = f"{at.isoformat()}{offset}", ZoneInfo("Pacific/Kiritimati")
        assert bool(complaint(lambda: parse_instant(text, zone), ValueError)) == (at.year in {1, 9999})

    @given(st.datetimes(FIRST, LAST), st.integers(-14 * 60, 14 * 60))
    def test_an_instant_survives_being_written_and_read(self, at, offset_minutes):
        aware = at.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
        assert parse_instant(aware.isoformat(), BERLIN) == aware


ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "Australia/Lord_Howe",
    "Asia/Beirut",
    "Africa/Cairo",
]
QUARTER = timedelta(minutes=15)


def by_the_wall(wall: datetime, zone: ZoneInfo) -> datetime:
    """The oracle: look at the clock on the wall every quarter of an hour, and take the first that shows it.

    Where none does, the clocks skip it: go on counting from the last one before.
    """
    begin = wall.replace(tzinfo=UTC) - timedelta(hours=16)
    shown = [begin + n * QUARTER for n in range(2 * 16 * 4)]
    walls = [at.astimezone(zone).replace(tzinfo=None) for at in shown]
    if wall in walls:
        return shown[walls.index(wall)]
    for (at, before), (_, after) in itertools.pairwise(zip(shown, walls, strict=True)):
        if before < wall < after:
            return at + (wall - before)
    raise AssertionError(f"{wall} is nowhere in {zone}")


@st.composite
def walls(draw: st.DrawFn) -> tuple[datetime, ZoneInfo]:
    """A quarter of an hour on the wall, most often in a night in which the clocks change."""
    zone = ZoneInfo(draw(st.sampled_from(ZONES)))
    new_year = datetime.fromisoformat(f"{draw(st.integers(2015, 2036))}-01-01")
    day = new_year + timedelta(days=draw(st.integers(0, 364)))
    if draw(st.sampled_from([True, True, True, False])):
        offsets = [(day + timedelta(days=n)).replace(tzinfo=zone).utcoffset() for n in range(200)]
        changes = [n for n, (one, other) in enumerate(itertools.pairwise(offsets)) if one != other]
        day += timedelta(days=changes[0] if changes else 0)
    return day + draw(st.integers(0, 2 * 96 - 1)) * QUARTER, zone


@settings(max_examples=300)
@given(walls())
def test_instants_agree_with_the_clock_on_the_wall(case):
    wall, zone = case
    assert parse_instant(wall.isoformat(), zone) == by_the_wall(wall, zone)
