"""The parameter reference: type, default and meaning of every parameter, taken from the classes that validate it.

`pd-pipeline params` shows the same meanings with the values of a project; the documentation lists all parameters of all
families, stages and methods.
"""

import importlib
import inspect
import json
import pkgutil
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from pd_pipeline import families, graph
from pd_pipeline.config import PARAMS_FILE, TARGET, Parameters, ParamsFile
from pd_pipeline.families.base import Family
from pd_pipeline.families.registry import BUILT_IN
from pd_pipeline.stages import Stage
from pd_pipeline.tuning.methods import built_in

MEANINGS = {
    "arguments": "keyword arguments of the function",
    "batch": "samples in each step",
    "behaviors": "quality of the data -> how it is collected",
    "blocks": "residual blocks",
    "checkpoint_seconds": "seconds between two saved states that work can resume from",
    "discount": "discount factor of later rewards, per step",
    "EpisodeCount.test": "episodes per target",
    "EpisodeCount.train": "episodes per training task",
    "dropout": "fraction of activations set to zero in training",
    "entry_point": "`module:Class` or `module:function`, in a file next to params.yaml or installed",
    "episodes": "quality -> number of episodes per training task and per target",
    "episodes_per_shard": "episodes that a worker collects before it saves them",
    "families": "names of the families to run",
    "heads": "attention heads; the width must be a multiple of it",
    "horizon": "steps after which an episode is cut off",
    "layers": "number of layers; for lora, the layers that get low-rank weights",
    "learning_rate": "peak of the learning rate",
    "levels": "quality -> changes to the family's default behaviour policy",
    "log_every": "steps between two rows of the log",
    "methods": "names of the methods and variants to run",
    "mode": "how the two gradients are combined: eq. 9, their plain sum, or one of them alone",
    "prediction": "what the network predicts: the noise, the clean prompt, or the velocity",
    "qualities": "qualities of the trajectories that become prompts",
    "radius": "radius of the circle of goals, in units of length",
    "reading": "interpretation of the projection in eq. 8; see the paper-to-code map",
    "schedule": "how the learning rate, or the noise of the diffusion, changes over the steps",
    "seed": "seed of the random numbers",
    "seeds": "the PLM and the diffuser are trained once per seed",
    "steps": "number of training steps",
    "strategy": "how the next segment to try is chosen",
    "test": "whether the conflict test of eq. 9 is over all parameters or layer by layer",
    "test_tasks": "numbers of the target tasks; the others are training tasks",
    "weight_decay": "weight decay of AdamW",
    "width": "units per layer",
}
"""Name, or class and name -> meaning, for parameters whose field has no description."""


PLAIN: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Any: "anything",
}
SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
WIDE = 10_000
"""Bounds from here on only catch typos and are not shown."""


@dataclass(frozen=True)
class Parameter:
    """One row of the reference."""

    name: str
    """Dotted name within its block."""
    type: str
    default: str
    """As written in YAML; `required` if there is none."""
    meaning: str


@dataclass(frozen=True)
class Block:
    """One block of params.yaml."""

    name: str
    """Its heading: `run`, `environment of reach`, `plm`."""
    title: str
    parameters: tuple[Parameter, ...]


def meaning(model: type[Parameters], name: str) -> str:
    """Meaning of a parameter: from its field, a base class or `MEANINGS`; empty if there is none."""
    fields = (cls.model_fields.get(name) for cls in model.__mro__ if issubclass(cls, Parameters))
    described = (field.description for field in fields if field is not None and field.description)
    text = next(described, MEANINGS.get(f"{model.__name__}.{name}", MEANINGS.get(name, "")))
    return re.sub(r"\bNone\b", "null", text)  # as in YAML


def parameters(model: type[Parameters], prefix: str = "") -> Iterator[Parameter]:
    """All parameters of a block, required ones first; those of nested blocks have dotted names."""
    fields = sorted(model.model_fields.items(), key=lambda item: not item[1].is_required())
    for name, field in fields:
        inner = next((t for t in _parts(field.annotation) if _is_block(t)), None)
        if inner is None or not _is_plain(field.annotation):
            yield Parameter(prefix + name, type_name(field), _default(field), meaning(model, name))
            if get_origin(field.annotation) is dict and _is_block(each := get_args(field.annotation)[1]):
                yield from parameters(each, f"{prefix}{name}.<name>.")
            continue
        if type(None) in _parts(field.annotation):
            state = "left out" if field.default is None else "as below"
            yield Parameter(prefix + name, "block or null", state, meaning(model, name) or _summary(inner))
        yield from parameters(inner, f"{prefix}{name}.")


def type_name(field: FieldInfo) -> str:
    """The type of a parameter in words, with its bounds, except those that only catch typos."""
    found = ((name, getattr(constraint, name, None)) for constraint in field.metadata for name in SIGNS)
    bounds = [f"{SIGNS[name]} {value}" for name, value in found if value is not None and value < WIDE]
    return f"{_type(field.annotation)} {', '.join(bounds)}".strip()


def blocks() -> list[Block]:
    """Every block that params.yaml may have: its fixed parts, environments, and all stages of all methods."""
    from pd_pipeline.tuning.protocol import TargetParams  # imports torch

    found = [
        Block(name, _summary(inner), tuple(parameters(inner)))
        for name, field in ParamsFile.model_fields.items()
        for inner in _parts(field.annotation)
        if _is_block(inner)
    ]
    found.append(Block(TARGET, _summary(TargetParams), tuple(parameters(TargetParams))))
    for name, family in environments().items():
        found.append(Block(f"environment of {name}", _summary(family), tuple(parameters(family.Params))))
    for name, stage in stages().items():
        title = _summary(importlib.import_module(stage.params_module))
        found.append(Block(name, title, tuple(parameters(stage.params_class()))))
    return [block for block in found if block.parameters]


def environments() -> dict[str, type[Family]]:
    """Name -> the class of the `environment` block: built-in families, then those for your own environments."""
    names = {reference: name for name, reference in BUILT_IN.items()}
    own: dict[str, type[Family]] = {}
    found: dict[str, type[Family]] = {}
    for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        for name, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(cls, Family) and cls.__module__ == module.name and not inspect.isabstract(cls):
                built = names.get(f"{module.name}:{name}")
                (own if built is None else found)[built or f"your own ({name})"] = cls
    return found | own


def stages() -> dict[str, Stage]:
    """The stages in the order of the graph, with every method of the package."""
    text = f"run: {{families: [point_robot], methods: [{', '.join(built_in())}]}}\n"
    with TemporaryDirectory() as folder:
        (Path(folder) / PARAMS_FILE).write_text(text)
        return graph.load(Path(folder)).stages


def markdown() -> str:
    """The reference as Markdown: a heading and a table per block."""
    lines = []
    for block in blocks():
        lines += [
            f"## {block.name}",
            "",
            block.title,
            "",
            "| parameter | type | default | meaning |",
            "|---|---|---|---|",
        ]
        for row in block.parameters:
            cells = (f"`{row.name}`", row.type, f"`{row.default}`", row.meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _is_block(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Parameters)


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; any other type alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _is_plain(annotation: Any) -> bool:
    """Whether a type is one block, or one block or null."""
    return all(_is_block(part) or part is type(None) for part in _parts(annotation))


def _type(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in inside)
    if origin in (tuple, dict):
        return f"list of {_type(inside[0])}" if origin is tuple else f"mapping to {_type(inside[1])}"
    if hasattr(annotation, "__metadata__"):  # Annotated inside a container
        return _type(inside[0])
    return "block" if _is_block(annotation) else PLAIN[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return json.dumps(field.get_default(call_default_factory=True), default=lambda value: value.model_dump(mode="json"))


def _summary(documented: Any) -> str:
    """The first paragraph of a docstring, as one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
