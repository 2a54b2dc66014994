"""The HTTP client of one Airflow instance. No other package uses HTTP or API versions."""
