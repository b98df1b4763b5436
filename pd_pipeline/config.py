"""Reading and validating params.yaml.

Each stage defines its own `Params` class next to the code that reads it, so a new parameter of one stage changes no
file that another stage depends on. This module contains what they share: the base class and the structure of the file.

The file has these parts. `run` names what is run (families, seeds, methods). `machine` is what to compute on,
`promotion` which policies are put in use, and `automation` what runs unattended: they are parameters of no result.
`families` has one block per family, which contains one block per stage, named after the stage, beside `environment` and
`target`, the target data that all methods get. A stage that works on all families at once has its block at the top
level. A block that is left out gets the defaults in the code.
"""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from pd_pipeline.errors import PipelineError, one_line
from pd_pipeline.parsing import parse
from pd_pipeline.yaml_text import read_file, values_of

PARAMS_FILE = "params.yaml"

# Generous upper bounds: larger values are typos that would use up the memory or run for days.
MAX_TASKS = 10_000
MAX_HORIZON = 1_000_000
MAX_STEPS = 1_000_000_000  # of one training

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$", max_length=64)]
"""A name that is also used in file names: letters, digits, '_' and '-', starting with a letter or '_'."""

STAGE_NAME = r"^[a-z][A-Za-z0-9_]*$"
StageName = Annotated[str, Field(pattern=STAGE_NAME, max_length=60)]
"""A name that becomes part of a stage name: a lower-case letter, then letters, digits and '_'."""

ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=200)]
"""The name of a Python module, as in `import`."""

Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""A seed of a random generator."""

Device = Annotated[
    str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$", description="auto: cuda, else mps, else cpu")
]
"""What to compute on."""


class Parameters(BaseModel):
    """Base class of every parameter block: immutable; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunParams(Parameters):
    """What is run: the cross product of families (with their target tasks), seeds and methods.

    A variant is a method under a second name, with its own parameters in `tuned_<variant>`: for example with other
    data, or an ablation.
    """

    families: tuple[Name, ...] = Field(min_length=1, max_length=100)
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, max_length=1000)
    methods: tuple[Name, ...] = Field(min_length=1, max_length=200)
    variants: dict[Name, Name] = Field(default={}, description="name of a variant -> the method it varies")
    studies: tuple[StageName, ...] = Field(
        default=(), max_length=100, description="names of files in studies/: these studies are run and reported too"
    )
    extensions: dict[Name, ModuleName] = Field(
        default={}, description="name of your own method -> its module, next to params.yaml or installed"
    )

    def method_of(self, name: str) -> str:
        """The method of the variant `name`; `name` itself if it is a method."""
        return self.variants.get(name, name)


class MachineParams(Parameters):
    """What to compute on, and where to share it. It is not part of any digest: outs stay up to date elsewhere."""

    device: Device = "auto"
    data_root: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="folder or URL (such as s3://bucket/folder) in which machines share outs; null: none",
    )


class PromotionParams(Parameters):
    """Which policies are put in use. Like `machine`, it is not part of any digest."""

    method: Name | None = Field(
        default=None, description="method whose policies are used; null: prompt_diffuser, or else the first in `run`"
    )
    seed: Seed | None = Field(default=None, description="the seed they were made with; null: the first in `run`")
    episodes: int = Field(
        default=20, ge=2, le=100_000, description="episodes in which a new policy is compared with the one in use"
    )
    margin: float = Field(
        default=0.02,
        ge=0,
        le=10,
        description="how much worse a new policy may be, as a fraction of the score of the one in use: the whole "
        "interval of the paired difference must be above that",
    )


_CRON = re.compile(r"@(hourly|daily|weekly|monthly|yearly)|([\w*/,\-#?]+ +){4}[\w*/,\-#?]+")
_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def _cron(value: str) -> str:
    fields = value.split() if not value.startswith("@") else []
    numbers = [[int(n) for n in re.findall(r"(?<!/)\b\d+", field)] for field in fields]
    allowed = all(low <= n <= high for (low, high), found in zip(_RANGES, numbers, strict=False) for n in found)
    if not _CRON.fullmatch(value.strip()) or not allowed:
        raise ValueError("not a cron expression: write five fields, such as '0 2 * * *' for two o'clock each night")
    return value.strip()


Cron = Annotated[str, Field(max_length=100), AfterValidator(_cron)]
"""When something runs by itself: minute, hour, day of month, month, day of week."""


class AlertParams(Parameters):
    """Who hears of failures, quarantined files and refused policies."""

    command: str | None = Field(
        default=None, max_length=1000, description="shell command that gets the alert as JSON on standard input"
    )
    url: str | None = Field(
        default=None,
        pattern=r"^(https?://|\$)",
        max_length=1000,
        description="address that gets it by POST; $NAME is taken from the environment, for secrets",
    )
    timeout: float = Field(default=30.0, gt=0, le=600, description="seconds until an alert is given up")


class AutomationParams(Parameters):
    """What runs unattended, and when. Like `machine`, it is not part of any digest."""

    time_zone: str = Field(default="UTC", max_length=64, description="of the schedules, such as Europe/Berlin")
    owners: tuple[str, ...] = Field(
        default=(), max_length=20, description="of all assets in Dagster: mail addresses, or team:NAME"
    )
    retune: Cron | None = Field(
        default=None,
        description="when to adapt to targets whose data or upstream models changed; null: not by itself",
    )
    retrain: Cron | None = Field(
        default=None, description="when to do all work that is out of date, pre-training included; null: not by itself"
    )
    report: Cron | None = Field(
        default=None, description="when to bring the evaluation and the report up to date; null: not by itself"
    )
    report_max_age_hours: float | None = Field(
        default=None, gt=0, le=10_000, description="the report counts as overdue in Dagster after that; null: never"
    )
    settle_seconds: float = Field(
        default=10.0, ge=0, le=86_400, description="how long a dropped file without a .done marker must be left alone"
    )
    alert: AlertParams = AlertParams()

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("not a known time zone: write one such as UTC or Europe/Berlin") from None
        return value

    @field_validator("owners")
    @classmethod
    def _are_owners(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for owner in value:
            if not re.fullmatch(r"team:[\w-]+|[^@\s]+@[^@\s]+\.[^@\s]+", owner):
                raise ValueError(f"'{owner}' is neither a mail address nor team:NAME")
        return value


PARTS = ("run", "machine", "promotion", "automation", "families")
"""Top-level parts of params.yaml, beside the blocks of stages that work on all families at once."""

TARGET = "target"
"""Block of a family that selects the data of its targets; the block of a tuning stage may contain one too."""

TUNED = "tuned_"
"""Prefix of the name of a tuning stage; its method or variant follows."""


class ParamsFile(Parameters):
    """The whole of params.yaml; each stage validates its own blocks."""

    model_config = ConfigDict(extra="allow")

    run: RunParams
    machine: MachineParams = MachineParams()
    promotion: PromotionParams = PromotionParams()
    automation: AutomationParams = AutomationParams()
    families: dict[Name, dict[str, dict[str, Any] | None] | None] = {}

    @property
    def blocks(self) -> dict[str, Any]:
        """The top-level blocks of stages, not yet validated."""
        return dict(self.model_extra or {})

    def block(self, family: str | None, stage: str) -> dict[str, Any]:
        """The raw block of one stage, for one family if the stage has families; empty if it is left out.

        In the block of a tuning stage, values missing from `target` are taken from the `target` of its family.
        """
        if family is None:
            return self.blocks.get(stage) or {}
        blocks = self.families.get(family) or {}
        block = blocks.get(stage) or {}
        own = block.get(TARGET) or {}
        if not stage.startswith(TUNED) or not isinstance(own, dict) or not {TARGET} & {*blocks, *block}:
            return block
        return block | {TARGET: (blocks.get(TARGET) or {}) | own}


def read_text(root: Path) -> str:
    """Read params.yaml of the project at `root`. Raises PipelineError if it is missing or unreadable."""
    path = root / PARAMS_FILE
    if path.exists() and not path.is_file():
        raise PipelineError(f"{path}: not a file: move it away and write the parameters to a file with this name")
    if not path.is_file():
        raise PipelineError(f"{path}: no such file: run this in a project folder, one that contains {PARAMS_FILE}")
    return read_file(path)


def overridden(values: Any, overrides: Sequence[str], top: Sequence[str] = ()) -> Any:
    """Apply overrides: `plm.steps=100` for every family that is run, or `families.reach.plm.steps=100`.

    `top` names the stages whose blocks are at the top level of the file. Raises PipelineError for an override that is
    not an assignment.
    """
    if not overrides:
        return values
    changed: Any = copy.deepcopy(values) if isinstance(values, dict) else {}
    for override in overrides:
        name, given, text = override.partition("=")
        parts = name.strip().split(".")
        if given and all(parts) and len(parts) == 1:
            raise PipelineError(f"--set {override}: name the block too, such as plm.steps=100 or target.few_shot=1")
        if not given or not all(parts):
            raise PipelineError(f"--set {override}: write NAME=VALUE, such as plm.steps=100 or run.seeds=[0,1]")
        run = changed.get("run")
        paths = [parts] if parts[0] in (*PARTS, *top) else [["families", name, *parts] for name in families_of(run)]
        for path in paths:
            block = changed
            for part in path[:-1]:
                block[part] = {} if block.get(part) is None else block[part]
                block = block[part]
                if not isinstance(block, dict):
                    raise PipelineError(f"--set {override}: '{part}' is {one_line(repr(block), 80)}, not a block")
            block[path[-1]] = values_of(text, Path(f"--set {override}"))
    return changed


def families_of(run: Any) -> list[str]:
    """The families that a `run` block names, which need not be valid."""
    listed = run.get("families") if isinstance(run, dict) else None
    return [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []


def validated(values: Any) -> ParamsFile:
    """Validate the values of params.yaml. Raises PipelineError for a violation or a duplicate name."""
    params = parse(ParamsFile, values, PARAMS_FILE)
    for name in ("families", "seeds", "methods", "studies"):
        items = getattr(params.run, name)
        if len(set(items)) < len(items):
            raise PipelineError(f"{PARAMS_FILE}: run.{name} contains duplicates: {list(items)}")
    return params


def load(root: Path) -> ParamsFile:
    """Load params.yaml of the project at `root`. Raises PipelineError if it is missing, unreadable or invalid."""
    return validated(values_of(read_text(root), root / PARAMS_FILE))
