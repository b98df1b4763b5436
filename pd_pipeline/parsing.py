"""Values that a user wrote become a typed model, or one clear line that names every place where they are wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pd_pipeline.errors import PipelineError, one_line, suggestion
from pd_pipeline.yaml_text import MAX_DEPTH

P = TypeVar("P", bound=BaseModel)


def parse(model: type[P], values: Any, where: str) -> P:
    """Validate `values` as `model`. Raises PipelineError, which names the place of every violation."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise PipelineError(
            "; ".join(_violation(model, item, where) for item in _without_consequences(error.errors())[:8])
        ) from None
    except RecursionError:
        raise PipelineError(f"{where}: nested too deeply: no block has more than {MAX_DEPTH} levels") from None


def _without_consequences(items: Sequence[Any]) -> list[Any]:
    """Drop violations that only follow from others: a list whose items are wrong also counts as too short."""
    places = [item["loc"] for item in items]
    return [
        item
        for item in items
        if item["type"] != "too_short" or not any(p[:-1] == item["loc"] and p != item["loc"] for p in places)
    ]


MOVED = {
    "device": "`machine: {device: ...}` at the top of the file",
    "few_shot": "`few_shot` in the family's `target` block",
    "quality": "`quality` in the family's `target` block",
}
"""Parameters of earlier versions -> where they are now."""


def _violation(model: type[BaseModel], item: Any, where: str) -> str:
    place, is_file = where, ": " not in where and Path(where).suffix != ""
    if item["loc"]:
        place += (": " if is_file else ".") + ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        fields = _fields_at(model, item["loc"][:-1])
        name = str(item["loc"][-1])
        moved = name in MOVED and name not in fields and f"{name[:-1]}ies" not in fields  # quality is now qualities
        return f"{place}: no such parameter: {f'it is now {MOVED[name]}' if moved else suggestion(name, fields)}"
    message = (
        "should be a list, such as [0]"
        if item["type"] in ("tuple_type", "list_type")
        else item["msg"].removeprefix("Value error, ")
    )
    return f"{place}: {message} (found {one_line(repr(item['input']), 80)})"


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the block at `location` in `model`; those of `model` itself if that is not a block."""
    found: Any = model
    for part in location:
        field = getattr(found, "model_fields", {}).get(part)
        nested = [t for t in _types(field.annotation) if hasattr(t, "model_fields")] if field is not None else []
        if nested:
            found = nested[0]
    return list(found.model_fields)


def _types(annotation: Any) -> list[Any]:
    """A type and, for a union or a container, all types inside it."""
    return [annotation, *(inner for part in getattr(annotation, "__args__", ()) for inner in _types(part))]
