"""params.yaml, read and validated.

Each stage defines its own `Params` class beside the code that reads it, so that a new parameter of one stage changes
no file that another stage depends on. This module holds what they share: the base class, the shape of the file and
the error that a wrong value gets.

The file has two parts. `run` names what is run (families, seeds, methods). `families` has one block a family, and in
it one block a stage, named like the stage; a block left empty (`{}`) takes the defaults of the code.
"""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pd_pipeline.errors import PipelineError

PARAMS_FILE = "params.yaml"


class Parameters(BaseModel):
    """Base of every parameter block: immutable, and an unknown name is an error rather than silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunParams(Parameters):
    """What is run: the cross product of families (with their target tasks), seeds and methods.

    A variant is a method once more under another name, with parameters of its own in `tuned_<variant>`: other data,
    an ablation.
    """

    families: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    methods: tuple[str, ...] = Field(
        default=("prompt_dt", "prompt_diffuser", "prompt_gradient", "full_finetune", "noise_prompt"), min_length=1
    )
    variants: dict[str, str] = Field(default={}, description="name of a variant -> the method it varies")

    def method_of(self, name: str) -> str:
        """The method that `name`, itself or a variant, stands for."""
        return self.variants.get(name, name)


class ParamsFile(Parameters):
    """params.yaml as a whole; the blocks inside `families` are validated by the stages that own them."""

    run: RunParams
    families: dict[str, dict[str, Any]]

    def block(self, family: str, stage: str) -> dict[str, Any]:
        """The raw block of one stage for one family. Raises PipelineError where it is missing."""
        if family not in self.families:
            known = ", ".join(sorted(self.families))
            raise PipelineError(
                f"{PARAMS_FILE}: unknown family '{family}': add a block `families.{family}` (present: {known})"
            )
        blocks = self.families[family]
        if stage not in blocks:
            raise PipelineError(
                f"{PARAMS_FILE}: families.{family} has no block '{stage}': add `{stage}: {{}}` to take its defaults"
            )
        return blocks[stage] or {}


P = TypeVar("P", bound=Parameters)


def parse(model: type[P], values: Any, where: str) -> P:
    """Validate `values` as `model`; every violation is named with its place in the file."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{where}{'.' if item['loc'] else ''}{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            f" (found {item['input']!r})"
            for item in error.errors()
        ]
        raise PipelineError("\n".join(lines)) from None


def load(root: Path) -> ParamsFile:
    """Read params.yaml of the project at `root`. Raises PipelineError on a missing, unreadable or invalid file."""
    path = root / PARAMS_FILE
    if not path.is_file():
        raise PipelineError(f"{path}: no such file: run inside a project folder, one that has a {PARAMS_FILE}")
    try:
        # YAML 1.2 like DVC itself: PyYAML reads 1e-3 as a string.
        values = YAML(typ="safe", pure=True).load(path.read_text())
    except YAMLError as error:
        raise PipelineError(f"{path}: not valid YAML: {error}") from None
    params = parse(ParamsFile, values, PARAMS_FILE)
    for name in ("families", "seeds", "methods"):
        items = getattr(params.run, name)
        if len(set(items)) < len(items):
            raise PipelineError(f"{PARAMS_FILE}: run.{name} names something twice: {list(items)}")
    return params
