"""What is asked of a Dagster instance, and what is kept in it."""
