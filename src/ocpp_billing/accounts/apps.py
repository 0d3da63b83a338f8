"""Django app configuration."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """See the package's modules."""

    name = "ocpp_billing.accounts"
    label = "accounts"
