"""Values in params.yaml that a family reads: plain ones, what differs from a default, and names that nothing reads."""

import json
from collections.abc import Collection
from typing import Annotated, Any

from pydantic import AfterValidator

from pd_pipeline.errors import PipelineError, suggestion


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values. Raises ValueError unless they can be kept as JSON: they are, with the trajectories."""
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{error}: write a date in quotes, and a large number in place of an infinite one") from None
    return values


Plain = Annotated[dict[str, Any], AfterValidator(_plain)]
"""A mapping from YAML that JSON can hold."""
Description = dict[str, Any]


def changed(own: Description, changes: Description) -> Description:
    """A description with some of its values changed, also those of mappings in it, such as `reset`."""
    return own | {
        name: {**own[name], **value} if isinstance(value, dict) and isinstance(own.get(name), dict) else value
        for name, value in changes.items()
    }


def check_names(description: Description, known: Collection[str]) -> None:
    """Raise PipelineError if one of the values has a name that the policy does not read."""
    for name in description:
        if name not in known:
            raise PipelineError(f"a policy has no value '{name}': {suggestion(name, known)}")
