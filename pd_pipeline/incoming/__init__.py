"""Data that users bring for target tasks: the drop zone, and what was accepted from it."""
