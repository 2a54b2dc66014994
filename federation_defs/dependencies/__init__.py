"""What happens upstream, and whether it starts a DAG."""
