"""Airflow's own assets (datasets in 2.x) and their events."""

from __future__ import annotations

from datetime import datetime

from federation_defs.airflow.api import follow_upgrade
from federation_defs.airflow.paging import PagedApi
from federation_defs.airflow.parsing import parse_asset, parse_asset_event
from federation_defs.airflow.records import AirflowAsset, AssetEvent


class AssetQuestions(PagedApi):
    """Questions about Airflow assets."""

    @follow_upgrade
    def fetch_assets(self) -> list[AirflowAsset]:
        """All Airflow assets that the account may read."""
        dialect = self.dialect
        params = {"order_by": "id"}
        return self._fetch_pages(
            dialect.asset_path, dialect.asset_field, parse_asset, params
        ).entries

    @follow_upgrade
    def fetch_asset_events(self, since: datetime) -> list[AssetEvent]:
        """The events at or after a moment, by the server's clock; in the order in which they were.

        Read from the newest on, as 2.x knows no events since a moment: what happens meanwhile
        comes twice, and is dropped once. (Airflow takes no events out but by a cleaning of its
        database, which takes old ones.)
        """
        dialect = self.dialect
        path, field = f"{dialect.asset_path}/events", dialect.asset_event_field
        events: dict[int, AssetEvent] = {}
        offset = 0
        while True:
            params = {"order_by": "-timestamp", "offset": offset}
            page = self._fetch_page(path, field, parse_asset_event, params)
            events |= {event.id: event for event in page.entries if event.timestamp >= since}
            offset += len(page.entries)
            is_older = any(event.timestamp < since for event in page.entries)
            if is_older or not page.entries or offset >= page.total:
                return sorted(events.values(), key=lambda event: (event.timestamp, event.id))
