"""A DAG file that no Airflow can import."""

raise RuntimeError("bröken on purpose")
