"""Starts DAGs for the events of their upstreams that no automation condition sees."""
