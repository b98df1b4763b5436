"""Parameters of behaviour policy training, apart from the trainer, which families with a script need not import."""

from pydantic import Field

from pd_pipeline.config import MAX_STEPS, Parameters, Seed
from pd_pipeline.errors import PipelineError


class LearningParams(Parameters):
    """How the goal-conditioned policy is trained: PPO with normalised observations and returns."""

    seed: Seed = 0
    steps: int = Field(default=3_200_000, gt=0, le=MAX_STEPS, description="environment steps, summed over all lanes")
    medium: float = Field(
        default=0.5, gt=0, lt=1, description="share of the steps after which the medium policy is saved"
    )
    lanes: int = Field(default=32, gt=0, le=10_000, description="environments per round")
    batch: int = Field(default=1600, gt=0, le=1_000_000, description="steps per update")
    epochs: int = Field(default=8, gt=0, le=1000, description="passes over a round's steps")
    learning_rate: float = Field(default=1e-3, gt=0, le=100, description="at the start; falls linearly to 5 % of it")
    initial_deviation: float = Field(
        default=0.37, gt=0, le=1000, description="initial standard deviation of actions, in the action's units"
    )
    discount: float = Field(default=0.97, gt=0, lt=1)
    ending_cost: float = Field(default=0.0, ge=0, le=1e9, description="subtracted from the reward of a terminal step")
    advantage_decay: float = Field(default=0.95, gt=0, le=1, description="lambda of generalised advantage estimation")
    clip: float = Field(default=0.2, gt=0, le=1000, description="clip range of the probability ratio")
    entropy: float = Field(default=0.0, ge=0, le=1000, description="weight of the entropy bonus")
    width: int = Field(default=256, gt=0, le=16_384)
    layers: int = Field(default=2, gt=0, le=200)
    workers: int | None = Field(
        default=None, ge=1, le=1000, description="processes for environments; None: one per core"
    )
    checkpoint_seconds: float = Field(default=30.0, ge=0, le=1e9)


def rounds_of(params: LearningParams, family: str, horizon: int) -> int:
    """The number of rounds of one episode per lane. Raises PipelineError for settings that do not fit the horizon."""
    where, steps = f"families.{family}.behavior_policies.learning", params.lanes * horizon
    if steps % params.batch:
        raise PipelineError(f"{where}.batch: {params.batch} does not divide a round's {params.lanes} x {horizon} steps")
    rounds = -(-params.steps // steps)
    if rounds < 2:
        raise PipelineError(
            f"{where}.steps: {params.steps} is one round of {params.lanes} x {horizon} steps: first, medium and last "
            "checkpoint need at least two"
        )
    return rounds
