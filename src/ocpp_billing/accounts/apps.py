"""Django app configuration."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """See the package's modules."""

    name = "ocpp_billing.accounts"
    label = "accounts"

    def ready(self) -> None:
        """Listen to allauth."""
        from ocpp_billing.accounts import signals  # noqa: F401, PLC0415 - importing it connects it
