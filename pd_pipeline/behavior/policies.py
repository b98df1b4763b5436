"""Stage behavior_policies: describe the policy of every quality level in `policies.json`.

Scripted policies need no training: their description is the family's default, changed where params.yaml says so.
"""

from typing import Any

from pd_pipeline.config import Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import write_json


class Params(Parameters):
    """Per quality, what differs from the family's own description."""

    levels: dict[str, dict[str, Any]] = {}


def run(context: StageContext) -> dict[str, Any]:
    """Write the descriptions; a quality that the family does not know needs a whole description in params.yaml."""
    levels = context.family.default_behaviors()
    for quality, changes in context.params.levels.items():
        levels[quality] = levels.get(quality, {}) | changes
        try:
            context.family.behavior(levels[quality])
        except KeyError as error:
            raise PipelineError(
                f"families.{context.key.family}.behavior_policies.levels.{quality}: {error} is missing"
            ) from None
    write_json(context.out / "policies.json", levels)
    return {"levels": len(levels)}
