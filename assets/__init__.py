"""Dagster's view of the pipeline."""
