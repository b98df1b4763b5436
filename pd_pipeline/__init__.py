"""Prompt Diffuser as a data pipeline: adapt a pre-trained policy transformer to new tasks with prompts."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pd_pipeline.deployment.policy import load_policy

__all__ = ["load_policy"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `load_policy` when it is first used: it needs PyTorch, which takes a second."""
    if name != "load_policy":
        raise AttributeError(f"module 'pd_pipeline' has no attribute '{name}'")
    # by name, so that no stage depends on the code of this module
    return importlib.import_module("pd_pipeline.deployment.policy").load_policy
