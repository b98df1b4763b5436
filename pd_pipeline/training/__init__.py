"""The training loop and the two pre-training stages."""
