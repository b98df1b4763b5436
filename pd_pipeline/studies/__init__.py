"""Studies: the pipeline at every point of a grid of parameters."""
