"""Trajectories: Parquet schema, collection, reading and validation."""
