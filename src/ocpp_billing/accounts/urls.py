"""The pages of allauth that are open here.

Not all of ``allauth.urls``: what needs e-mail (password reset, address confirmation) or has no page of
ours yet must not be reachable.
"""

from allauth.account import views
from django.contrib.auth.decorators import login_not_required
from django.urls import path

urlpatterns = [
    path("login/", login_not_required(views.login), name="account_login"),
    path("logout/", login_not_required(views.logout), name="account_logout"),
    path("inactive/", login_not_required(views.account_inactive), name="account_inactive"),
    path("signup/", login_not_required(views.signup), name="account_signup"),
    path("reauthenticate/", views.reauthenticate, name="account_reauthenticate"),
    path("password/change/", views.password_change, name="account_change_password"),
]
