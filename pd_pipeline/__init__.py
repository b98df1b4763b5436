"""Prompt Diffuser as a data pipeline: adapt a pre-trained policy transformer to new tasks with prompts."""

__version__ = "0.1.0"
