"""Policies that collect trajectories."""
