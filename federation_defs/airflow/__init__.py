"""The HTTP client of one Airflow instance. No other package sends HTTP or knows API versions."""
