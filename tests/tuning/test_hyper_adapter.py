"""Adapters that begin as a hyper-network makes them, and its pre-training."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.models.adapters import of_adapters, with_adapters
from pd_pipeline.models.decision_transformer import action_loss
from pd_pipeline.models.hyper_network import save_hyper_network
from pd_pipeline.progress import silent
from pd_pipeline.training import hyper_network as training
from pd_pipeline.training.hyper_network import TaskData, task_loss
from pd_pipeline.trajectories.reading import Trajectories
from pd_pipeline.tuning import hyper_adapter
from pd_pipeline.tuning.hyper_adapter import Params
from pd_pipeline.tuning.protocol import Pretrained, Run, Target
from tests.conftest import run_stages
from tests.models.test_hyper_network import network_of
from tests.tuning.tiny import CONTEXT, EXACT, PROMPT

TRAINING = "hyper_network: {steps: 40, warmup: 2, tasks: 2, batch: 8, segments: 8, width: 16, bottleneck: 2}"


@pytest.mark.parametrize("segments", [None, 5])
def test_adapters_begin_as_made_from_the_few_shot_segments(
    segments: int | None, plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    network = network_of(plm)
    save_hyper_network(tmp_path / "network", network)
    given = replace(plm, outs={"hyper_network": tmp_path / "network"})
    params = Params.model_validate({"steps": 1, "learning_rate": 1e-9, "segments": segments, "prompts": 3} | EXACT)
    run = Run(tmp_path / "work", tmp_path / "logs", "hyper_adapter", silent, 0)
    found = hyper_adapter.tune(given, few_shot, params, run)
    x0, y = few_shot.tensors(plm)
    if segments is not None:
        rows = torch.tensor([0, 6, 11, 16, 22])  # of 23, evenly spread
        x0, y = x0[rows], y[rows]
    for name, tensor in network(x0, y).items():
        torch.testing.assert_close(found.tensors[name], tensor, atol=1e-6, rtol=1e-5)
    assert found.cost.tuned_parameters == sum(t.numel() for t in of_adapters(with_adapters(plm.policy, 2)).values())
    assert found.frozen, "the PLM's own weights are as they were"
    before = {name: tensor.clone() for name, tensor in plm.policy.state_dict().items()}
    trained = hyper_adapter.tune(given, few_shot, params.model_copy(update={"learning_rate": 0.01, "steps": 3}), run)
    name = "blocks.0.adapt_mlp.up.weight"
    assert (trained.tensors[name] - found.tensors[name]).abs().max() > 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in plm.policy.state_dict().items())


def test_the_loss_is_that_of_the_policy_with_the_adapters(plm: Pretrained, few_shot: Target) -> None:
    network, policy = network_of(plm), with_adapters(plm.policy, 2)
    task = TaskData(few_shot.data, [few_shot.prompts], plm.normalization, plm.device)
    params = training.Params(segments=6, batch=7)
    found = task_loss(network, policy, task, params, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    rows = rng.choice(len(task.x0), 6, replace=False)
    policy.load_state_dict(network(task.x0[rows], task.y[rows]), strict=False)
    batch = task.windows.batch(rng, 7, PROMPT, CONTEXT)
    expected = action_loss(policy(batch.prompt, batch.window), batch.window.actions, batch.valid)
    torch.testing.assert_close(found, expected)
    network.requires_grad_(True)
    task_loss(network, with_adapters(plm.policy, 2), task, params, np.random.default_rng(5)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_it_learns_from_other_episodes_than_it_is_validated_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, set[int]]] = []
    real = TaskData.__init__

    def note(self: TaskData, data: Trajectories, *rest: Any) -> None:
        made.append((int(data.task_id[0]), {*data.episode_id.tolist()}))
        real(self, data, *rest)

    monkeypatch.setattr(TaskData, "__init__", note)
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("no_prompt]", "no_prompt, hyper_adapter]") + f"    {TRAINING}\n")
    run_stages(project, "hyper_network")
    tasks = len(made) // 2
    assert [task for task, _ in made[:tasks]] == [task for task, _ in made[tasks:]] == [0, 2, 3, 5], "no target"
    for (_, learned), (_, validated) in zip(made[:tasks], made[tasks:], strict=True):
        assert len(validated) == 1
        assert max(learned) < min(validated), "the last of each task"


def test_pre_training_lowers_the_loss_of_tasks_and_leaves_the_policy_alone(project: Path) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("no_prompt]", "no_prompt, hyper_adapter]") + f"    {TRAINING}\n")
    before = (project / "data/plm/point_robot-0/policy.safetensors").read_bytes()
    run_stages(project, "hyper_network")
    with (project / "data/hyper_network/point_robot-0/losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows]
    assert losses[-1] < losses[0]
    assert all(row["validation_loss"] for row in rows[-1:])
    assert (project / "data/plm/point_robot-0/policy.safetensors").read_bytes() == before
