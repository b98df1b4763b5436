"""What made the numbers: parameters, versions, revision, digests of the data, and the machine."""

import importlib
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pd_pipeline import __version__
from pd_pipeline.config import ParamsFile
from pd_pipeline.families.base import load_family
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.incoming.store import NEW
from pd_pipeline.parsing import parse
from pd_pipeline.storage import digest
from pd_pipeline.studies.definition import PREFIX

WITHOUT_SEEDS = ("trajectories", "target_data")
PACKAGES = (
    "torch",
    "numpy",
    "gymnasium",
    "mujoco",
    "metaworld",
    "pyarrow",
    "polars",
    "scipy",
    "safetensors",
    "pydantic",
    "matplotlib",
    "dagster",
    "dvc",
)


def stage_parameters(params: ParamsFile, family: str, stage: str, modules: Mapping[str, str]) -> dict[str, Any]:
    """The effective parameters of a stage: what params.yaml sets, and the defaults of the code."""
    model = importlib.import_module(modules[stage]).Params
    return parse(model, params.block(family, stage), f"families.{family}.{stage}").model_dump(mode="json")


def effective_parameters(
    params: ParamsFile, family: str, root: Path, modules: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Every stage of a family -> its effective parameters, as flat `a.b` names. What is not read is not named.

    `modules`: stage -> the module of its Params.
    """
    loaded = load_family(family, params.block(family, "environment"), root)
    environment = loaded.params.model_dump(mode="json")
    blocks = {stage: stage_parameters(params, family, stage, modules) for stage in modules}
    behavior = blocks["behavior_policies"]
    if not isinstance(loaded, Locomotion) or behavior["trained"] is not None:  # then no policy is trained
        del behavior["learning"]
    if loaded.is_recorded:
        unread = [
            ("evaluation", name) for name in blocks["evaluation"] if name not in ("offline", "bootstrap", "precision")
        ]
        unread += [(stage, name) for stage in ("behavior_policies", "trajectories") for name in blocks[stage]]
    else:
        unread = [("evaluation", "offline")]
    for stage, name in unread:
        del blocks[stage][name]
    return {stage: flat(block) for stage, block in ({"environment": environment} | blocks).items()}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay whole."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {prefix + name: value}
    return result


def versions() -> dict[str, str]:
    """Versions of this package, Python and what decides the numbers."""
    found = {"pd-pipeline": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, str]:
    """The machine that wrote the page."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    found = {"cores": str(os.cpu_count()), "processor": names[0] if names else platform.machine()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return found | {"system": f"{platform.system()} {platform.release()}"}


def outs(inputs: Mapping[str, Path], params: ParamsFile, family: str) -> dict[str, list[Path]]:
    """Stage -> the directories that the report reads of one family, and no leftovers of other runs; without studies."""
    keys = [f"{family}-{seed}" for seed in params.run.seeds]
    return {
        stage: [
            folder
            for key in ([family] if stage in WITHOUT_SEEDS else keys)
            for folder in (directory / key, directory / f"{key}{NEW}")
            if folder.is_dir()
        ]
        for stage, directory in inputs.items()
        if not stage.startswith(PREFIX)
    }


def digests(inputs: Mapping[str, Path], params: ParamsFile, family: str) -> list[tuple[str, str]]:
    """SHA-256 of every directory that the numbers come from."""
    return [
        (f"{stage}/{directory.name}", digest(directory))
        for stage, directories in outs(inputs, params, family).items()
        for directory in directories
    ]
