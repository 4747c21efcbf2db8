from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client

from tests.fleet.dashboard.small_fleet import Fleet


@pytest.fixture
def colleague(db) -> Client:
    """Somebody who operates the fleet, signed in."""
    client = Client()
    client.force_login(User.objects.create_user("ada", password="lovelace", is_staff=True))
    return client


@pytest.fixture
def fleet(db) -> Fleet:
    return Fleet.build()
