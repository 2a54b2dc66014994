"""A Dagster instance that refuses what Dagster+ refuses in user code.

Code servers, run workers and sensors of Dagster+ reach its storages by GraphQL, through classes of
the package dagster-cloud. Some methods of these classes only raise `NotImplementedError`. Here they
are read from the installed package, and an instance over any other storage refuses the same ones.

Daemon and webserver are handed the same instance as user code is, so the instance asks an
environment variable where it is.
"""

from __future__ import annotations

import ast
import inspect
import os
from functools import cache
from typing import Any, TypeVar

import dagster as dg
from dagster._core.instance.ref import InstanceRef

T = TypeVar("T")

IN_USER_CODE = "DAGSTER_PLUS_USER_CODE"  # set in the processes that are user code
# Dagster itself calls them on other storages than Dagster+'s: there, the first is a part of storing
# an event, and the state of definitions has a storage of its own.
_NEEDED = {"handle_run_event", "get_cursor_values", "set_cursor_values"}


class UserCodeInstance(dg.DagsterInstance):
    """The `instance_class` of a dagster.yaml: any instance, and in user code as in Dagster+."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if os.environ.get(IN_USER_CODE):
            from dagster_cloud.storage.event_logs import GraphQLEventLogStorage
            from dagster_cloud.storage.runs import GraphQLRunStorage
            from dagster_cloud.storage.schedules import GraphQLScheduleStorage

            self._event_storage: Any = UserCodeStorage(self._event_storage, GraphQLEventLogStorage)
            self._run_storage: Any = UserCodeStorage(self._run_storage, GraphQLRunStorage)
            self._schedule_storage: Any = UserCodeStorage(
                self._schedule_storage, GraphQLScheduleStorage
            )

    @classmethod
    def config_schema(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def config_defaults(cls, base_dir: str) -> Any:
        return InstanceRef.config_defaults(base_dir)


class UserCodeStorage:
    """A storage as user code reaches it.

    Args:
        server: Does what is not refused. What it calls itself is never refused.
        client: The class of dagster-cloud that knows what is refused.
    """

    def __init__(self, server: object, client: type) -> None:
        self.server = server
        self._client = client

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self.server)  # Dagster checks it

    def get_asset_records(self, asset_keys: Any = None) -> Any:
        """Of no keys, Dagster+ returns all assets."""
        return self.server.get_asset_records(asset_keys or None)  # pyright: ignore

    def get_latest_asset_check_execution_by_key(self, check_keys: Any, **more: Any) -> Any:
        """Dagster+ gets the keys as text."""
        keys = [dg.AssetCheckKey.from_user_string(key.to_user_string()) for key in check_keys]
        assert keys == list(check_keys)
        return self.server.get_latest_asset_check_execution_by_key(keys, **more)  # pyright: ignore

    def __getattr__(self, name: str) -> Any:
        if name in find_refused(self._client) - _NEEDED:
            raise NotImplementedError(f"Dagster+ refuses {self._client.__name__}.{name}.")
        return getattr(self.server, name)


def as_server(storage: T) -> T:
    """Return a storage as the daemon and the webserver reach it, which may do everything."""
    return getattr(storage, "server", storage)


@cache
def find_refused(client: type) -> frozenset[str]:
    """Return the methods and properties of a class that do nothing but raise an error.

    They are found by their source. Calling them would need arguments of the right types for each,
    and a refusal would look like the error of a missing connection.
    """
    names = [name for name in dir(client) if not name.startswith("__")]
    return frozenset(name for name in names if _is_refusing(inspect.getattr_static(client, name)))


def _is_refusing(attribute: Any) -> bool:
    function: Any = attribute.fget if isinstance(attribute, property) else attribute
    function = inspect.unwrap(getattr(function, "__func__", function))  # of a class method
    if not inspect.isfunction(function):
        return False
    if getattr(function, "__isabstractmethod__", False):
        return True
    source = inspect.getsource(function)
    tree = ast.parse(f"class _:\n{source}" if source[0].isspace() else source)
    definition = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    statements = definition.body[ast.get_docstring(definition) is not None :]
    first = statements[0] if statements else None
    # Two methods of the run storage return the error instead (dagster-cloud 1.13).
    is_returning_error = (
        isinstance(first, ast.Return)
        and isinstance(first.value, ast.Call)
        and ast.unparse(first.value.func).endswith("Error")
    )
    return isinstance(first, ast.Raise) or is_returning_error
