"""The training loop and the two pre-trainings."""
