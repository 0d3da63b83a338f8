"""Django app configuration."""

from typing import Any

from django.apps import AppConfig
from django.db.backends.signals import connection_created


class SyncConfig(AppConfig):
    """See the package's modules."""

    name = "ocpp_billing.sync"
    label = "sync"

    def ready(self) -> None:
        """Have PostgreSQL compile no query: ours look at few rows each, while it reckons with many.

        Where its compiler is installed, as in the official image, that would cost the big lists of the portal
        up to a second each.
        """
        connection_created.connect(_compile_nothing, dispatch_uid="compile nothing")


def _compile_nothing(connection: Any, **_arguments: Any) -> None:
    connection.connection.execute("SET jit = off")
