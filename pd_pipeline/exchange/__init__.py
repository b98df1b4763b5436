"""Import and export of trajectories in formats of other programs."""
