"""One Airflow instance over HTTP. Nothing outside this folder speaks HTTP or knows API versions."""
