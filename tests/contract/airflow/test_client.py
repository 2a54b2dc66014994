"""What an instance says of itself and of the account, on an Airflow of either API version."""

from __future__ import annotations

import pytest

from federation_defs.errors import AirflowError
from tests.contract.worlds import World


def test_the_api_version_is_found_out(world: World) -> None:
    assert world.client.api_version.api == world.api


def test_the_version_is_of_the_major_that_serves_the_api(world: World) -> None:
    assert world.client.fetch_version().startswith({"v1": "2.", "v2": "3."}[world.api])


def test_a_wrong_password_is_told_as_such(world: World) -> None:
    """2.11 as it comes answers 403 to it: who is not known has the role Public."""
    client = world.connect_with_password("not-the-password")
    with pytest.raises(AirflowError) as refused:
        client.fetch_dags()
    assert client.instance in str(refused.value)
    assert f"{client.instance.upper()}_PASSWORD" in str(refused.value)
    assert "not-the-password" not in str(refused.value)
