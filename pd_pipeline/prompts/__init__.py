"""Segments of trajectories as prompts."""
