"""People who sign in, and the record of what they did."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class Role(models.TextChoices):
    """What a person may do: everything; mappings, review and sync; read and export."""

    ADMIN = "admin", _("Admin")
    OPERATOR = "operator", _("Operator")
    VIEWER = "viewer", _("Viewer")

    def within(self, other: Role) -> bool:
        """Whether this role may do no more than the other."""
        order = list(Role)
        return order.index(self) >= order.index(other)


class UserManager(BaseUserManager["User"]):
    """Creates users by e-mail; Django's authentication wants it to have this name and these methods."""

    def create_user(self, email: str, password: str | None, **fields: Any) -> User:
        """Create a person; ``password=None`` means: cannot sign in until one is set."""
        user = self.model(email=email.strip().lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def get_by_natural_key(self, username: str | None) -> User:
        """Find a person by e-mail, whatever its case."""
        return self.get(email__iexact=username)


class User(AbstractBaseUser):
    """A person. The e-mail address is the name to sign in with, whatever its case."""

    email = models.EmailField(_("e-mail"), max_length=254)
    name = models.CharField(_("name"), max_length=150, blank=True)
    role = models.CharField(_("role"), max_length=10, choices=Role.choices, default=Role.VIEWER)
    is_active = models.BooleanField(_("active"), default=True)
    date_joined = models.DateTimeField(default=timezone.now)

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects: ClassVar[UserManager] = UserManager()

    class Meta:
        db_table = "app_user"
        constraints = [
            models.UniqueConstraint(Lower("email"), name="app_user_email_unique"),
            # allauth looks for the address in lower case: with capitals nobody could sign in by it.
            models.CheckConstraint(condition=Q(email=Lower("email")), name="app_user_email_lower"),
        ]

    def __str__(self) -> str:
        return self.name or self.email

    @property
    def initial(self) -> str:
        """One letter that stands for the person where there is no room for the name."""
        return str(self)[0].upper()

    @property
    def is_admin(self) -> bool:
        """May do everything."""
        return self.is_active and self.role == Role.ADMIN

    @property
    def is_operator(self) -> bool:
        """May map, review, sync and close; admins may, too."""
        return self.is_active and self.role in {Role.ADMIN, Role.OPERATOR}


class ApiToken(models.Model):
    """A person's key to the JSON API; see :mod:`ocpp_billing.accounts.tokens`."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(_("name"), max_length=100)
    role = models.CharField(_("role"), max_length=10, choices=Role.choices)
    # SHA-256 of the token. The token itself is nowhere.
    digest = models.BinaryField(max_length=32, unique=True)
    # Its last four characters, to tell one's tokens apart.
    hint = models.CharField(max_length=4)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(null=True)
    # Exact to a minute.
    last_used_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "api_token"
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(condition=Q(role__in=Role.values), name="api_token_role_known"),
        ]

    def __str__(self) -> str:
        return f"{self.name} (…{self.hint})"

    @property
    def effective_role(self) -> Role:
        """What it may do now: never more than its person, whatever it was made for."""
        own, owners = Role(self.role), Role(self.user.role)
        return own if own.within(owners) else owners


class Invitation(models.Model):
    """A place that is kept for somebody; see :mod:`ocpp_billing.accounts.invitations`."""

    email = models.EmailField(_("e-mail"), max_length=254)
    name = models.CharField(_("name"), max_length=150)
    role = models.CharField(_("role"), max_length=10, choices=Role.choices)
    # The link that is good carries it; a new one makes every earlier link worthless.
    nonce = models.CharField(max_length=32)
    invited_by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    # When a mail server took the link; None = an admin hands it over.
    sent_at = models.DateTimeField(null=True)
    accepted_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "invitation"
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(condition=Q(role__in=Role.values), name="invitation_role_known"),
            models.CheckConstraint(condition=Q(email=Lower("email")), name="invitation_email_lower"),
            models.UniqueConstraint(
                fields=["email"],
                condition=Q(accepted_at=None, revoked_at=None),
                name="invitation_open_once",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.email} ({self.role})"


class AuditEntry(models.Model):
    """What a person did: who, what, to what, before and after, from where. Never deleted, and never changed.

    But for the text of an id tag, where a pseudonym took its place (:mod:`charging.pseudonyms`).
    """

    at = models.DateTimeField(default=timezone.now)
    user = models.ForeignKey(User, null=True, on_delete=models.PROTECT, related_name="+")
    # Who it was in words, also where no account stands behind it: "command line (root)".
    actor = models.CharField(max_length=254)
    action = models.CharField(max_length=60)
    target = models.CharField(max_length=200, blank=True)
    before = models.JSONField(null=True)
    after = models.JSONField(null=True)
    note = models.TextField(blank=True)
    address = models.GenericIPAddressField(null=True)

    class Meta:
        db_table = "audit_entry"
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["-at"], name="audit_entry_at"),
            models.Index(fields=["target"], name="audit_entry_target"),
        ]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} {self.actor}: {self.action} {self.target}"
