"""Django app configuration."""

from django.apps import AppConfig


class SyncConfig(AppConfig):
    """See the package's modules."""

    name = "ocpp_billing.sync"
    label = "sync"
