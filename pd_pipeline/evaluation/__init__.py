"""Rollouts and statistics."""
