"""Stage hyper_network: pre-train the hyper-network that makes adapters for the frozen PLM (for `hyper_adapter`).

Each step draws some training tasks. For each of them, segments of its trajectories become adapters, and the loss is the
PLM's action loss with these adapters on windows of the task, under prompts of the same task.
"""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pd_pipeline.compute import pick_device
from pd_pipeline.config import Name
from pd_pipeline.models.adapters import with_adapters
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer, action_loss
from pd_pipeline.models.hyper_network import HyperNetwork, HyperNetworkConfig, HyperNetworkShape, save_hyper_network
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.models.saved_policy import load_policy
from pd_pipeline.prompts.segments import Normalization, Prompts
from pd_pipeline.prompts.stage import Params as PromptParams
from pd_pipeline.prompts.stage import held_out_episodes
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import read_model
from pd_pipeline.training.loop import BatchSize, PretrainingParams, Rate, StepCount, Trainer
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories.reading import Trajectories, joined, read

VALIDATION_TASKS = 8


class Params(HyperNetworkShape, PretrainingParams):
    """Shape and training of the hyper-network."""

    steps: StepCount = 500
    learning_rate: Rate = 1e-3
    clip: float | None = Field(default=1.0, gt=0)
    log_every: StepCount = 20
    tasks: int = Field(default=4, gt=0, le=10_000, description="training tasks per step")
    batch: BatchSize = Field(default=16, description="windows per task and step")
    segments: int = Field(default=16, gt=0, le=10_000, description="segments that stand for a task in training")
    qualities: tuple[Name, ...] = Field(
        default=("expert",), min_length=1, max_length=100, description="qualities of the trajectories to learn from"
    )
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of episodes kept for the validation loss")


class TaskData:
    """Windows and segments of one task, normalised, on one device."""

    def __init__(self, data: Trajectories, segments: list[Prompts], normalization: Normalization, device: torch.device):
        self.windows = PolicyData(data, normalization, device)
        parts = [prompt_tensors(part, normalization, device) for part in segments]
        self.x0, self.y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))


def run(context: StageContext) -> dict[str, Any]:
    """Write `hyper_network.safetensors` (the moving average, if there is one), `config.json` and `losses.csv`."""
    params: Params = context.params
    device = pick_device(context.device)
    plm, normalization = load_policy(context.inputs["plm"], device)
    length = read_model(context.inputs["prompts"] / "config.json", PromptParams).length
    training, validation = _tasks(context, params, normalization, length, device)
    config = HyperNetworkConfig(
        channels=training[0].x0.shape[2],
        prompt_length=length,
        policy_width=plm.config.width,
        adapters=2 * plm.config.layers,
        **params.model_dump(include=set(HyperNetworkShape.model_fields)),
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(context.seed)
        network = HyperNetwork(config).to(device)
    if params.compile:
        network.compile()  # in place: the names of the weights stay the same
    policy = with_adapters(plm, params.bottleneck)

    def loss_of_step(step: int) -> Tensor:
        rng = np.random.default_rng([context.seed, step])
        drawn = rng.choice(len(training), min(params.tasks, len(training)), replace=False)
        losses = [task_loss(network, policy, training[i], params, rng) for i in drawn]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        rng = np.random.default_rng(0)
        losses = [task_loss(network, policy, task, params, rng) for task in validation[:VALIDATION_TASKS]]
        return {"validation_loss": float(torch.stack(losses).mean())}

    trainer = Trainer(network, params, context.work, f"hyper_network {context.key}")
    history = trainer.fit(trainer.backward(loss_of_step), context.progress, context.logs, evaluate)
    save_hyper_network(context.out, network)
    history.write(context.out / "losses.csv")
    context.facts.update(device=str(device), precision=trainer.precision)
    return {name: history.rows[-1][name] for name in ("loss", "validation_loss")}


def _tasks(
    context: StageContext, params: Params, normalization: Normalization, length: int, device: torch.device
) -> tuple[list[TaskData], list[TaskData]]:
    """The training tasks with their trajectories to learn from, and with those held out for the validation loss."""
    files = [context.inputs["trajectories"] / f"{quality}.parquet" for quality in params.qualities]
    data = [read(file, context.family.train_tasks, context.family) for file in files]
    held_out = [held_out_episodes(part.task_id, params.held_out) for part in data]  # of each quality
    folder = context.inputs["prompts"]
    segments = [Prompts.load(folder / f"{quality}.safetensors", normalization, length) for quality in params.qualities]

    def tasks(masks: list[np.ndarray]) -> list[TaskData]:
        return [
            TaskData(
                joined([p.select(np.flatnonzero(m & (p.task_id == task))) for p, m in zip(data, masks, strict=True)]),
                [part.select(part.task_id == task) for part in segments],
                normalization,
                device,
            )
            for task in np.unique(data[0].task_id)
        ]

    return tasks([~mask for mask in held_out]), tasks(held_out)


def task_loss(
    network: HyperNetwork,
    policy: PromptingDecisionTransformer,
    task: TaskData,
    params: Params,
    rng: np.random.Generator,
) -> Tensor:
    """Action loss of the policy with the adapters that the network makes from random segments of a task."""
    count = min(params.segments, len(task.x0))
    shown = torch.from_numpy(rng.choice(len(task.x0), count, replace=False)).to(task.x0.device)
    adapters = network(task.x0[shown], task.y[shown])
    batch = task.windows.batch(rng, params.batch, policy.config.prompt_length, policy.config.context)
    predicted = torch.func.functional_call(policy, adapters, (batch.prompt, batch.window))
    return action_loss(predicted, batch.window.actions, batch.valid)
