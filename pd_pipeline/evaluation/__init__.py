"""Scores of rollouts, and their statistics."""
