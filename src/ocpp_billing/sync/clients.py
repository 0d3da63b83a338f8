"""The clients of both systems, made from the settings."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ocpp_billing.config import ConfigError
from ocpp_billing.lago.client import LagoClient, LagoSettings
from ocpp_billing.lago.errors import Misconfigured
from ocpp_billing.steve.client import SteveClient, SteveSettings
from ocpp_billing.steve.errors import InvalidSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocpp_billing.config import Config

OF_STEVE = ("STEVE_API_URL", "STEVE_API_KEY")
OF_LAGO = ("LAGO_API_KEY",)


def require_connections(config: Config, *names: str) -> None:
    """Check that both systems are configured, or that these variables are set.

    Raises:
        ConfigError: naming each variable that is missing.
    """
    problems = config.missing(*(names or OF_STEVE + OF_LAGO))
    if problems:
        raise ConfigError(problems)


@contextmanager
def open_clients(config: Config) -> Iterator[tuple[SteveClient, LagoClient]]:
    """Clients of StEvE and Lago, closed at the end.

    Raises:
        ConfigError: when a connection is not, or not sensibly, configured.
    """
    require_connections(config)
    with steve_client(config) as steve, lago_client(config) as lago:
        yield steve, lago


def steve_client(config: Config) -> SteveClient:
    """A client of StEvE, to be closed.

    Raises:
        ConfigError: when it is not, or not sensibly, configured.
    """
    require_connections(config, *OF_STEVE)
    assert config.steve_api_url and config.steve_api_key  # noqa: S101, PT018
    try:
        settings = SteveSettings(
            url=config.steve_api_url,
            key=config.steve_api_key,
            username=config.steve_api_username,
            key_header=config.steve_api_key_header,
            read_timeout_s=float(config.steve_read_timeout_seconds),
        )
    except InvalidSettings as error:
        raise ConfigError([str(error)]) from error
    return SteveClient(settings)


def lago_client(config: Config) -> LagoClient:
    """A client of Lago, to be closed.

    Raises:
        ConfigError: when it is not, or not sensibly, configured.
    """
    require_connections(config, *OF_LAGO)
    assert config.lago_api_key  # noqa: S101
    try:
        settings = LagoSettings(
            url=config.lago_api_url,
            api_key=config.lago_api_key,
            read_timeout_s=float(config.lago_read_timeout_seconds),
        )
    except Misconfigured as error:
        raise ConfigError([str(error)]) from error
    return LagoClient(settings)
