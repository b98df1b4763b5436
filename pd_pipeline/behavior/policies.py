"""Stage behavior_policies: describe the policy of every quality level in `policies.json`, and train it where needed.

Scripted policies need no training: their description is the family's default, changed where params.yaml says so.
Locomotion has no script: one goal-conditioned policy is trained, and its checkpoints are saved beside the descriptions.
"""

import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from pd_pipeline.behavior.learning import LearningParams
from pd_pipeline.config import Name, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.descriptions import Plain, changed
from pd_pipeline.families.goal_policy import located
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import digest, write_json, write_table


class Trained(Parameters):
    """Policies of an earlier training, an out of this stage, used instead of training again."""

    folder: str = Field(description="relative to params.yaml's folder, or absolute")
    digest: str = Field(description="digest of its checkpoints, so that params.yaml identifies them")


class Params(Parameters):
    """Per quality, what differs from the family's default description; and how policies are trained, if they are."""

    levels: dict[Name, Plain] = {}
    learning: LearningParams = LearningParams()
    trained: Trained | None = None


def run(context: StageContext) -> dict[str, Any]:
    """Write the descriptions; a quality that the family does not define needs a full description in params.yaml."""
    family, params = context.family, context.params
    metrics: dict[str, Any] = {}
    if isinstance(family, Locomotion):
        if params.trained is None:
            metrics = _train(context, family, params.learning)
        else:
            _copy_trained(context, family, context.root / params.trained.folder, params.trained.digest)
    elif params.trained is not None:
        raise PipelineError(f"families.{family.name}.behavior_policies.trained: its policies are scripts: remove this")
    levels = family.default_behaviors()
    for quality, changes in params.levels.items():
        levels[quality] = changed(levels.get(quality, {}), changes)
        try:
            family.behavior(located(levels[quality], context.out))
        except KeyError as error:
            raise PipelineError(
                f"families.{context.key.family}.behavior_policies.levels.{quality}: {error} is missing"
            ) from None
        except (PipelineError, TypeError, ValueError) as error:
            raise PipelineError(f"families.{context.key.family}.behavior_policies.levels.{quality}: {error}") from None
    write_json(context.out / "policies.json", levels)
    return {"levels": len(levels)} | metrics


def _copy_trained(context: StageContext, family: Locomotion, folder: Path, wanted: str) -> None:
    """Copy the checkpoints of `folder`. Raises PipelineError unless their digest is `wanted`."""
    where = f"families.{family.name}.behavior_policies.trained"
    files = [folder / f"{quality}.safetensors" for quality in family.qualities]
    if missing := [file.name for file in files if not file.is_file()]:
        raise PipelineError(f"{where}.folder: {folder} lacks {', '.join(missing)}")
    if (found := digest(*files)) != wanted:
        raise PipelineError(f"{where}.digest: {wanted}, but the checkpoints in {folder} have {found}")
    for file in files:
        shutil.copyfile(file, context.out / file.name)
    for description in family.default_behaviors().values():
        family.behavior(located(description, context.out))  # refuses weights of another width


def _train(context: StageContext, family: Locomotion, params: LearningParams) -> dict[str, Any]:
    """Train the family's policy; writes one safetensors file per checkpoint, and `learning.csv`."""
    from pd_pipeline.behavior.ppo import learn  # takes seconds to import

    rows = learn(family, context.environment, context.root, params, context.work, context.progress)
    for quality in family.qualities:
        shutil.copyfile(context.work / f"{quality}.safetensors", context.out / f"{quality}.safetensors")
    write_table(context.out / "learning.csv", rows)
    context.facts["device"] = "cpu"
    return {"return_mean": rows[-1]["return_mean"], "early_ends": rows[-1]["early_ends"]}
