"""What an instance says of itself and of the account, on an Airflow of either API version."""

from __future__ import annotations

import pytest

from federation_defs.errors import AirflowError
from tests.contract.worlds import FakeWorld


def test_the_api_version_is_found_out(fake_world: FakeWorld) -> None:
    assert fake_world.client.api_version.api == fake_world.api


def test_the_version_is_of_the_major_that_serves_the_api(fake_world: FakeWorld) -> None:
    assert fake_world.client.fetch_version().startswith({"v1": "2.", "v2": "3."}[fake_world.api])


def test_a_wrong_password_names_the_account_to_check(fake_world: FakeWorld) -> None:
    """2.11 as it comes answers 403 to it: who is not known has the role Public."""
    client = fake_world.connect_with_password("not-the-password")
    with pytest.raises(AirflowError) as refused:
        client.fetch_dags()
    assert client.instance in str(refused.value)
    assert f"{client.instance.upper()}_PASSWORD" in str(refused.value)
    assert "not-the-password" not in str(refused.value)
