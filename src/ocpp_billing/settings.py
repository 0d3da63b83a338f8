"""Django's settings, derived from :mod:`ocpp_billing.config`. There is one set for every process."""

from __future__ import annotations

import secrets
from typing import Any
from urllib.parse import urlsplit

from csp.constants import NONCE, NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict

from ocpp_billing.config import ConfigError, load_config

try:
    CONFIG = load_config()
except ConfigError as error:
    raise ImproperlyConfigured(str(error)) from error

AUTH = urlsplit(CONFIG.auth_url)
HTTPS = AUTH.scheme == "https"

# Only `web` signs anything that must outlive the process; it refuses to start without AUTH_SECRET.
SECRET_KEY = CONFIG.auth_secret or secrets.token_urlsafe(48)
DEBUG = False
ALLOWED_HOSTS = [AUTH.hostname or "localhost", "localhost", "127.0.0.1", "[::1]"]
CSRF_TRUSTED_ORIGINS = [f"{AUTH.scheme}://{AUTH.netloc}"]
ROOT_URLCONF = "ocpp_billing.urls"
ASGI_APPLICATION = "ocpp_billing.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.contrib.postgres",
    # Before allauth: its pages are drawn by templates of ours with the same names.
    "ocpp_billing.portal",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.usersessions",
    "csp",
    "django_htmx",
    "ninja",
    "ocpp_billing.accounts",
    "ocpp_billing.charging",
    "ocpp_billing.mappings",
    "ocpp_billing.billing",
    "ocpp_billing.sync",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "ocpp_billing.portal.headers.HeadersMiddleware",
    "ocpp_billing.portal.addresses.NoNulMiddleware",
    "ocpp_billing.portal.static_files.StaticFilesMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "ocpp_billing.accounts.middleware.SignInRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "allauth.usersessions.middleware.UserSessionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "csp.context_processors.nonce",
                "ocpp_billing.portal.context.portal",
            ],
        },
    }
]


def _database(url: str | None) -> dict[str, Any]:
    parameters = conninfo_to_dict(url or "postgresql:///ocpp_billing")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parameters.pop("dbname", ""),
        "USER": parameters.pop("user", ""),
        "PASSWORD": parameters.pop("password", ""),
        "HOST": parameters.pop("host", ""),
        "PORT": parameters.pop("port", ""),
        "OPTIONS": {
            "application_name": "ocpp-billing",
            "connect_timeout": 10,
            # Silence of the network must not look like a slow query for ever.
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            **parameters,
        },
        "CONN_HEALTH_CHECKS": True,
    }


DATABASES = {"default": _database(CONFIG.database_url)}

AUTH_USER_MODEL = "accounts.User"
# Unique whatever its case, by a constraint that this check does not look at.
SILENCED_SYSTEM_CHECKS = ["auth.W004"]
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 12},
    },
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_REDIRECT_URL = "/"
LOGIN_URL = "account_login"
ACCOUNT_ADAPTER = "ocpp_billing.accounts.adapter.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*", "password2*"]
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_UNIQUE_EMAIL = True
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_LOGOUT_ON_GET = False
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_FORMS = {
    "login": "ocpp_billing.accounts.forms.SignInForm",
    "reauthenticate": "ocpp_billing.accounts.forms.ConfirmByPasswordForm",
    "reset_password": "ocpp_billing.accounts.forms.RequestResetForm",
    "user_token": "ocpp_billing.accounts.forms.ResetLinkForm",
}
# As allauth has it, but nobody's mailbox is flooded.
ACCOUNT_RATE_LIMITS = {"reset_password": "20/m/ip,5/15m/key"}
PASSWORD_RESET_TIMEOUT = 24 * 3600
MFA_ADAPTER = "ocpp_billing.accounts.adapter.SecondFactorAdapter"
MFA_FORMS = {
    "authenticate": "ocpp_billing.accounts.forms.SecondStepForm",
    "reauthenticate": "ocpp_billing.accounts.forms.ConfirmByCodeForm",
}
MFA_SUPPORTED_TYPES = ["totp", "recovery_codes"]
MFA_TOTP_ISSUER = "OCPP Billing Sync"
# A code is typed while it runs out, and phones are some seconds off.
MFA_TOTP_TOLERANCE = 1
USERSESSIONS_TRACK_ACTIVITY = True

SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
# With this prefix browsers take a cookie only from this very host, by HTTPS: not one that a neighbouring
# subdomain, or somebody on the line before the redirect to HTTPS, has set.
_COOKIE_PREFIX = "__Host-" if HTTPS else ""
SESSION_COOKIE_NAME = f"{_COOKIE_PREFIX}sessionid"
CSRF_COOKIE_NAME = f"{_COOKIE_PREFIX}csrftoken"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_HTTPONLY = True
CSRF_COOKIE_SAMESITE = "Lax"
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF, NONCE],
        "style-src": [SELF, NONCE],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "object-src": [NONE],
        "connect-src": [SELF],
        "manifest-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    }
}

CACHES = {
    "default": {
        # Shared by all web processes: sign-in limits must count over all of them. Nothing else is in it.
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "web_cache",
        # With Django's 300 a flood of attempts would push the counters out of it.
        "OPTIONS": {"MAX_ENTRIES": 20_000},
    },
    # Everything else that they share; see ocpp_billing.remembered.
    "remembered": {
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "web_remembered",
        "OPTIONS": {"MAX_ENTRIES": 20_000},
    },
}

STATIC_URL = "static/"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# The files come with the package and are served from it: no collection step, no writable folder.
WHITENOISE_USE_FINDERS = True
# Vendored files carry their version in the name of their folder; browsers never ask for them again.
WHITENOISE_IMMUTABLE_FILE_TEST = r"^/static/vendor/[a-z-]+-[0-9.]+/"

LANGUAGE_CODE = "en"
USE_I18N = True
USE_TZ = True
TIME_ZONE = CONFIG.sync_timezone
# A number names something (a session, a run) more often than it counts: counts have a filter, `count`.
USE_THOUSAND_SEPARATOR = False

LOGGING_CONFIG = None
