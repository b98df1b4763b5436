"""Behaviour policies, which collect trajectories."""
