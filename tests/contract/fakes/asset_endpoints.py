"""What a fake Airflow says of its assets."""

from __future__ import annotations

from werkzeug import Request, Response

from tests.contract.fakes.api import FakeApi, RefusedError
from tests.contract.fakes.asset_answers import build_asset, build_event

NAMES = {"v1": "datasets", "v2": "assets"}


def build_asset_routes(api: str) -> list[tuple[str, str, str]]:
    return [
        ("GET", f"/{NAMES[api]}", "list_assets"),
        ("GET", f"/{NAMES[api]}/events", "list_events"),
        ("POST", f"/{NAMES[api]}/events", "post_event"),
    ]


class AssetEndpoints(FakeApi):
    """Airflow assets (datasets in 2.x) and their events."""

    def list_assets(self, request: Request) -> Response:
        order = {"id": lambda asset: asset.id}
        return self.page(request, NAMES[self.api], self.database.assets, build_asset, order)

    def list_events(self, request: Request) -> Response:
        field = {"v1": "dataset_events", "v2": "asset_events"}[self.api]
        order = {"timestamp": lambda event: event.timestamp}
        return self.page(request, field, self.database.events, build_event, order)

    def check_event_shape(self, request: Request) -> None:
        """What 2.x looks at before it looks who asks."""
        if self.api == "v1" and "dataset_uri" not in request.get_json():
            raise RefusedError(400, "'dataset_uri' is a required property", "Bad Request")

    def post_event(self, request: Request) -> Response:
        """No event is ever made: there is nobody who posts them."""
        needed = {"v1": "dataset_uri", "v2": "asset_id"}[self.api]
        self.check_fields(request.get_json(), {needed, "extra"})
        raise self.refuse_field(needed, "No such asset")
