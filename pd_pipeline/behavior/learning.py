"""How a behaviour policy is trained, apart from what trains it: families with a script need not load that."""

from pydantic import Field

from pd_pipeline.config import MOST_STEPS, Parameters, Seed


class LearningParams(Parameters):
    """How the goal-conditioned policy is trained: PPO with normalised observations and returns."""

    seed: Seed = 0
    steps: int = Field(default=3_200_000, gt=0, le=MOST_STEPS, description="of the environment, all lanes together")
    medium: float = Field(
        default=0.5, gt=0, lt=1, description="share of the steps after which the medium policy is kept"
    )
    lanes: int = Field(default=32, gt=0, le=10_000, description="environments that a round collects from")
    batch: int = Field(default=1600, gt=0, le=1_000_000, description="steps of an update")
    epochs: int = Field(default=8, gt=0, le=1000, description="passes over a round's steps")
    learning_rate: float = Field(default=1e-3, gt=0, le=100, description="at the start; falls linearly to 5 % of it")
    initial_deviation: float = Field(
        default=0.37, gt=0, le=1000, description="of exploring actions, in the action's units"
    )
    discount: float = Field(default=0.97, gt=0, lt=1)
    ending_cost: float = Field(default=0.0, ge=0, le=1e9, description="taken off the reward of a step that terminates")
    advantage_decay: float = Field(default=0.95, gt=0, le=1, description="lambda of generalised advantages")
    clip: float = Field(default=0.2, gt=0, le=1000, description="range of the probability ratio")
    entropy: float = Field(default=0.0, ge=0, le=1000, description="weight of the entropy bonus")
    width: int = Field(default=256, gt=0, le=16_384)
    layers: int = Field(default=2, gt=0, le=200)
    workers: int | None = Field(
        default=None, ge=1, le=1000, description="processes for environments; None: one per core"
    )
    checkpoint_seconds: float = Field(default=30.0, ge=0, le=1e9)
