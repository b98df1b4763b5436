"""Both pre-training stages, recomputed from their input files to the weights they write."""

import copy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from pd_pipeline import graph
from pd_pipeline.compute import generator_of
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import PolicyConfig, PromptingDecisionTransformer, action_loss
from pd_pipeline.models.diffuser import Denoiser, DenoiserConfig
from pd_pipeline.models.diffusion import Diffusion, DiffusionParams
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.models.saved_diffuser import load_diffuser
from pd_pipeline.models.saved_policy import load_policy
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import Normalization, Prompts
from pd_pipeline.stage import Key, StageContext
from pd_pipeline.storage import load_arrays
from pd_pipeline.training import diffuser, plm
from pd_pipeline.training.policy_data import PolicyData, TaskInterpolation
from pd_pipeline.trajectories.reading import read

SEED = 5
PLAIN = {"schedule": "constant", "warmup": 0, "clip": None, "weight_decay": 0.01, "learning_rate": 1e-2}
EXACT = {"precision": "float32", "log_every": 1}


def context(root: Path, out: Path, stage: Any, **params: Any) -> StageContext:
    """The context of a pre-training stage with its own seed."""
    project = graph.load(root)
    out.mkdir(parents=True)
    return StageContext(
        root=root,
        stage="training",
        key=Key("point_robot", None, SEED),
        params=stage.Params.model_validate({**PLAIN, **EXACT, **params}),
        module=stage.__name__,
        modules=project.modules,
        environment=project.params.block("point_robot", "environment"),
        inputs={name: root / "data" / name / "point_robot" for name in ("trajectories", "prompts")},
        out=out,
        work=out.parent / f"{out.name}-work",
        logs=out.parent / f"{out.name}-logs",
        progress=silent,
        params_file=project.params,
    )


def seeded(model: type[nn.Module], config: Any) -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        return model(config)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01, fused=True)


def logged(given: StageContext) -> tuple[list[float], list[float]]:
    rows = pl.read_csv(given.out / "losses.csv")
    return rows["loss"].to_list(), rows["validation_loss"].to_list()


SHAPE = {"context": 6, "acting_context": None, "width": 16, "layers": 1, "heads": 1, "dropout": 0.3}


def plm_by_hand(
    given: StageContext, held_out: int, steps: int
) -> Iterator[tuple[float, float, PromptingDecisionTransformer]]:
    """Loss and validation loss of each step, and the policy after it."""
    data = read(given.inputs["trajectories"] / "expert.parquet", given.family.train_tasks)
    assert [int((data.task_id == task).sum()) for task in given.family.train_tasks] == [6] * 4
    last = [i for task in given.family.train_tasks for i in np.flatnonzero(data.task_id == task)[-held_out:]]
    others = np.setdiff1d(np.arange(len(data.task_id)), last)
    normalization = Normalization.load(given.inputs["prompts"] / "normalization.safetensors")
    training, validation = (PolicyData(data.select(np.array(rows)), normalization) for rows in (others, last))
    sizes = {"observation_size": 2, "action_size": 2, "max_timestep": 12, "prompt_length": 3}
    policy = seeded(PromptingDecisionTransformer, PolicyConfig.model_validate(sizes | SHAPE)).train()
    descent = optimizer(policy)
    fixed = validation.batch(np.random.default_rng(1 << 20), 8, 3, 6)
    for step in range(steps):
        mixing = TaskInterpolation(share=0.5, extrapolation=0.2)
        batch = training.batch(np.random.default_rng([SEED, step]), 5, 3, 6, mixing)
        generator = generator_of(SEED, step)
        loss = action_loss(policy(batch.prompt, batch.window, generator), batch.window.actions, batch.valid)
        descent.zero_grad()
        loss.backward()
        descent.step()
        policy.eval()
        with torch.no_grad():
            valid = action_loss(policy(fixed.prompt, fixed.window), fixed.window.actions, fixed.valid)
        policy.train()
        yield loss.item(), valid.item(), policy


@pytest.mark.parametrize(("share", "held_out"), [(0.4, 2), (0.1, 1)])
def test_the_plm_by_hand(share: float, held_out: int, trained_project: Path, tmp_path: Path) -> None:
    mixing = {"share": 0.5, "extrapolation": 0.2}
    params = {"steps": 3, "batch_per_task": 5, "interpolation": mixing, "held_out": share, **SHAPE}
    given = context(trained_project, tmp_path / "out", plm, **params)
    metrics = plm.run(given)
    *losses, policies = zip(*plm_by_hand(given, held_out, 3), strict=True)
    np.testing.assert_allclose(logged(given), losses, rtol=1e-5)
    assert metrics == pytest.approx({"loss": losses[0][-1], "validation_loss": losses[1][-1]}, rel=1e-5)
    found, normalization = load_policy(given.out)
    expected = policies[-1].state_dict()
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-4)
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert (normalization.horizon, normalization.observation_size) == (12, 2)
    assert given.facts == {"device": "cpu", "precision": "float32"}


def test_trajectories_of_another_family_are_refused(trained_project: Path, tmp_path: Path) -> None:
    given = context(trained_project, tmp_path / "out", plm, steps=1, **SHAPE)
    with pytest.raises(PipelineError, match="horizon"):
        plm.run(replace(given, environment=given.environment | {"horizon": 13}))


def many_held_out(given: StageContext, folder: Path, count: int) -> None:
    """The same prompts, with `count` other prompts held out."""
    shutil.copytree(given.inputs["prompts"], folder)
    given.inputs["prompts"] = folder
    rng = np.random.default_rng(0)
    x0, y = (rng.normal(size=(count, 3, width)).astype(np.float32) for width in (5, 2))
    zeros = np.zeros(count, np.int32)
    Prompts(x0, y, zeros, zeros.astype(np.int64), zeros).save(folder / "expert-held_out.safetensors")


@pytest.mark.parametrize("held_out", [40, 600])
@pytest.mark.parametrize("ema", [None, 0.2])
def test_the_diffuser_by_hand(ema: float | None, held_out: int, trained_project: Path, tmp_path: Path) -> None:
    """The validation loss is of 512 held-out prompts at most, and of the averaged weights, which are saved."""
    shape = {"width": 16, "blocks": 1, "frequencies": 4}
    params = {"steps": 4, "batch": 7, "ema": ema, "denoiser": shape, "diffusion": {"steps": 6}}
    given = context(trained_project, tmp_path / "out", diffuser, **params)
    many_held_out(given, tmp_path / "prompts", held_out)
    metrics = diffuser.run(given)
    normalization = Normalization.load(given.inputs["prompts"] / "normalization.safetensors")
    x0, y, held_x0, held_y = (
        part
        for name in ("expert", "expert-held_out")
        for part in prompt_tensors(Prompts.load(given.inputs["prompts"] / f"{name}.safetensors"), normalization)
    )
    denoiser = seeded(Denoiser, DenoiserConfig.model_validate({"channels": 5, "prompt_length": 3, **shape}))
    diffusion, descent = Diffusion(DiffusionParams(steps=6)), optimizer(denoiser)

    def l_dm(of: Denoiser, x0: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        n = torch.randint(0, 6, (len(x0),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        return diffusion.loss(lambda x, n: of(x, y, n / 6), x0, noise, n)

    average = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    fixed = np.random.default_rng(0).choice(held_out, min(held_out, 512), replace=False)
    losses: list[tuple[float, float]] = []
    for step in range(4):
        rows = np.random.default_rng([SEED, step]).integers(0, len(x0), 7)
        loss = l_dm(denoiser, x0[rows], y[rows], generator_of(SEED, step))
        descent.zero_grad()
        loss.backward()
        descent.step()
        decay = 0.0 if ema is None else min(ema, (1 + step) / (10 + step))
        for name, tensor in denoiser.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * tensor
        saved = copy.deepcopy(denoiser)
        saved.load_state_dict(average)
        with torch.no_grad():
            losses.append((loss.item(), l_dm(saved, held_x0[fixed], held_y[fixed], generator_of(0, 0)).item()))
    np.testing.assert_allclose(logged(given), list(zip(*losses, strict=True)), rtol=1e-5)
    assert metrics == pytest.approx(dict(zip(("loss", "validation_loss"), losses[-1], strict=True)), rel=1e-5)
    found, process = load_diffuser(given.out)
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, average[name], atol=1e-5, rtol=1e-4)
    assert process.steps == 6
    assert given.facts == {"device": "cpu", "precision": "float32"}
    assert all(array.dtype == np.float32 for array in load_arrays(given.out / "denoiser.safetensors")[0].values())
