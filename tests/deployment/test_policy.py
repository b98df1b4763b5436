"""Acting with a policy folder: the actions of evaluation, batches, the return asked for, and what is refused."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import pd_pipeline
from pd_pipeline import graph, load_policy
from pd_pipeline.acting.environments import episode_seed
from pd_pipeline.acting.rollouts import Rollouts
from pd_pipeline.deployment.policy import Policy, read_policy
from pd_pipeline.deployment.writing import write_policy
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation import episodes
from pd_pipeline.evaluation.policies import targets, tuned_policies
from pd_pipeline.families.base import Family
from pd_pipeline.graph import Graph
from pd_pipeline.models.prefixes import read_prompt
from pd_pipeline.piece import stage_context
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key
from pd_pipeline.storage import load_arrays
from pd_pipeline.tuning.protocol import Pretrained
from tests.builders import policy as made_policy
from tests.builders import steps
from tests.conftest import run_stages
from tests.deployment.conftest import TARGET
from tests.training.test_stages import set_params

HORIZON = 12


def evaluated(project: Graph, out: Path) -> tuple[list[tuple[str, int, int]], Rollouts]:
    """(method, task, actor) of every episode of evaluation, and these episodes by its own code."""
    key = project.keys("evaluation")[0]
    context = stage_context(project, "evaluation", key, out, out, silent)
    plm = Pretrained.load(context.inputs["plm"], context.inputs.get("diffuser"), "cpu")
    policies = tuned_policies(context, plm, targets(context))
    named = [(policy.method, policy.task, actor) for policy in policies for actor in range(len(policy.actors))]
    return named, episodes._roll_out(context, policies, plm, 0, "")


def acted(policy: Policy, family: Family) -> tuple[np.ndarray, np.ndarray]:
    """Observations (T, d_s) and actions (T, d_a) of an episode from the start that evaluation gave its actor."""
    about = policy.description
    environment, reward = family.make(about.task), None
    observation, _ = environment.reset(seed=episode_seed(about.seed, about.task, about.actor))
    policy.reset()
    observations, actions = [], []
    for _ in range(family.horizon):
        observations.append(observation)
        actions.append(policy.act(observation, reward))
        observation, reward, *_ = environment.step(actions[-1])
    return np.array(observations), np.array(actions)


def side_by_side(root: Path, work: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (what was found, what evaluation's own code gives): the recorded rollouts, and every policy's episode."""
    project = graph.load(root)
    named, rollouts = evaluated(project, work)
    out = root / "data/evaluation/point_robot-0"
    recorded, _ = load_arrays(out / "rollouts.safetensors")
    scores = pl.read_parquet(out / "scores.parquet")[recorded["rows"].tolist()]
    assert [(*row, 0) for row in scores.select("method", "task").rows()] == [named[row] for row in recorded["rows"]]
    found = {"recorded actions": (recorded["actions"], rollouts.actions[recorded["rows"]])}
    for method in project.params.run.methods:
        for task in project.tasks["point_robot"]:
            write_policy(project, method, Key("point_robot", task, 0), work / f"{method}-{task}")
            policy = load_policy(work / f"{method}-{task}")
            observations, actions = acted(policy, project.family("point_robot"))
            row = named.index((method, task, policy.description.actor))
            found[f"{method} {task} observations"] = (observations, rollouts.observations[row])
            found[f"{method} {task} actions"] = (actions, rollouts.actions[row])
    return found


def test_it_acts_as_evaluation_did_to_the_bit(tuned_project: Path, tmp_path: Path) -> None:
    compared = side_by_side(tuned_project, tmp_path)
    assert len(compared) == 1 + 6 * 2 * 2, "methods, targets, observations and actions"
    for name, (found, expected) in compared.items():
        np.testing.assert_array_equal(found, expected, err_msg=name, strict=True)


def test_so_do_low_rank_weights_and_a_method_of_ones_own(project: Path, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "tuning/soft_prompt.py", project / "my_method.py")
    run = "  methods: [lora, mine]\n  extensions: {mine: my_method}"
    text = re.sub(r"^  methods: .*$", run, (project / "params.yaml").read_text(), count=1, flags=re.MULTILINE)
    (project / "params.yaml").write_text(text + "    tuned_lora: {steps: 8, batch: 8, rank: 2}\n")
    run_stages(project, "tuned_lora", "tuned_mine", "evaluation")
    compared = side_by_side(project, tmp_path / "work")
    assert len(compared) == 1 + 2 * 2 * 2, "methods, targets, observations and actions"
    for name, (found, expected) in compared.items():
        np.testing.assert_array_equal(found, expected, err_msg=name, strict=True)
    # the folder alone is enough: it runs no code of the method
    sys.modules.pop("my_method")
    sys.path.remove(str(project))
    folder = shutil.move(tmp_path / "work/mine-1", tmp_path / "elsewhere")
    shutil.rmtree(project)
    policy = load_policy(folder)
    policy.reset()
    assert np.isfinite(policy.act(np.zeros(2))).all()


def test_bf16_is_kept_where_evaluation_acted_so(project: Path, tmp_path: Path) -> None:
    text = re.sub(
        r"^  methods: .*$", "  methods: [prompt_dt]", (project / "params.yaml").read_text(), flags=re.MULTILINE
    )
    (project / "params.yaml").write_text(text)
    run_stages(project, "tuned_prompt_dt")
    actions = {}
    for precision in ("float32", "bf16"):
        if precision == "bf16":
            set_params(project, "evaluation: {workers: 1", "evaluation: {precision: bf16, workers: 1")
        run_stages(project, "evaluation")
        named, rollouts = evaluated(graph.load(project), tmp_path)
        write_policy(graph.load(project), "prompt_dt", TARGET, tmp_path / precision)
        policy = load_policy(tmp_path / precision)
        assert policy.description.precision == precision
        _, actions[precision] = acted(policy, graph.load(project).family("point_robot"))
        row = named.index(("prompt_dt", TARGET.task, policy.description.actor))
        np.testing.assert_allclose(actions[precision], rollouts.actions[row], atol=0.02, rtol=0)
    assert np.abs(actions["bf16"] - actions["float32"]).max() > 1e-4


def test_a_row_of_a_batch_acts_as_it_would_alone_whenever_it_began(written: Path) -> None:
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(6, HORIZON, 2)).astype(np.float32)
    rewards = rng.normal(size=(6, HORIZON)).astype(np.float32)
    alone = []
    for row in range(6):
        policy = load_policy(written)
        policy.reset()
        given = [None, *rewards[row, :-1]]
        alone.append([policy.act(o, r) for o, r in zip(observations[row], given, strict=True)])
    batch = load_policy(written, batch=6)
    batch.reset()
    begun = np.zeros(6, int)  # steps of each row's episode
    for step in range(20):
        if again := [row for row in range(6) if begun[row] == HORIZON or step == 2 * row + 1]:
            batch.reset(again)
            begun[again] = 0
        rows = np.arange(6)
        found = batch.act(observations[rows, begun], rewards[rows, begun - 1])
        for row in rows:
            np.testing.assert_array_equal(found[row], alone[row][begun[row]], strict=True)
        begun += 1


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
def test_the_last_bits_do_not_depend_on_the_batch(written: Path, heads: int, requires_grad: bool) -> None:
    """At the size of the published policies, with weights that need gradients too, as those of full_finetune do."""
    about = read_policy(written).description.model_copy(update={"requires_grad": requires_grad})
    plm = made_policy(observation_size=2, max_timestep=HORIZON, context=6, width=128, layers=3, heads=heads)
    plm.requires_grad_(requires_grad)
    loaded = replace(read_policy(written), description=about, plm=plm, prefix=read_prompt(plm, *steps(1, 5, d_s=2)))
    rng = np.random.default_rng(1)
    observations = rng.normal(size=(HORIZON, 64, 2))
    policies = {count: Policy(loaded, count) for count in (1, 2, 3, 4, 5, 64)}
    for policy in policies.values():
        policy.reset()
    for given in observations:
        actions = {count: policy.act(given[:count]) for count, policy in policies.items()}
        for count, found in actions.items():
            np.testing.assert_array_equal(found, actions[64][:count], err_msg=str(count))


def test_the_reward_lowers_the_return_that_is_asked_for(written: Path) -> None:
    policy, observation = load_policy(written), np.array([0.1, 0.2])

    def actions(*rewards: float | None) -> list[np.ndarray]:
        policy.reset()
        return [policy.act(observation, reward) for reward in rewards]

    held = actions(None, None, None)
    np.testing.assert_array_equal(actions(None, 0.0, 0.0), held)
    np.testing.assert_array_equal(actions(5.0, None, None), held, err_msg="there is no reward before the first step")
    given = actions(None, -1.0, None)
    np.testing.assert_array_equal(given[0], held[0])
    assert (given[1] != held[1]).any()
    assert (given[2] != held[2]).any()


def test_actions_stay_within_the_bounds(written: Path) -> None:
    policy = load_policy(written, batch=5)
    policy.reset()
    for scale in (1, 1e3, 1e6):
        action = policy.act(scale * np.ones((5, 2)))
        assert action.dtype == np.float32
        assert action.shape == (5, 2)
        assert (np.abs(action) <= 1).all()


def test_what_it_returns_is_the_callers_own(written: Path) -> None:
    first, second = load_policy(written), load_policy(written)
    observation = np.zeros(2, np.float32)
    for policy in (first, second):
        policy.reset()
    first.act(observation)[:] = 9
    observation[:] = 9
    second.act(np.zeros(2))
    np.testing.assert_array_equal(first.act(np.zeros(2)), second.act(np.zeros(2)))


@pytest.mark.parametrize(
    ("batch", "observation", "reward", "message"),
    [
        (None, np.zeros(3), None, r"observation has shape \(3,\), expected \(2,\)"),
        (None, np.zeros((1, 2)), None, r"observation has shape \(1, 2\), expected \(2,\)"),
        (3, np.zeros(2), None, r"observation has shape \(2,\), expected \(3, 2\)"),
        (None, "far", None, "observation is not an array of numbers"),
        (None, np.array([0.0, np.nan]), None, "observation holds values that are not finite"),
        (None, np.zeros(2), np.inf, "reward holds values that are not finite"),
        (None, np.zeros(2), np.zeros(2), r"reward has shape \(2,\), expected \(\)"),
        (3, np.zeros((3, 2)), 1.0, r"reward has shape \(\), expected \(3,\)"),
    ],
)
def test_bad_input_is_one_line(
    written: Path, batch: int | None, observation: object, reward: object, message: str
) -> None:
    policy = load_policy(written, batch=batch)
    policy.reset()
    good = np.zeros(2 if batch is None else (batch, 2))
    expected = policy.act(good)
    with pytest.raises(PipelineError, match=f"^act: the {message}"):
        policy.act(observation, reward)  # type: ignore[arg-type]
    again = load_policy(written, batch=batch)
    again.reset()
    np.testing.assert_array_equal(again.act(good), expected)
    np.testing.assert_array_equal(again.act(good), policy.act(good), err_msg="what was refused changed nothing")


def test_an_episode_begins_with_a_reset_and_ends_at_the_horizon(written: Path) -> None:
    policy = load_policy(written)
    with pytest.raises(PipelineError, match=r"act: no episode has begun: call reset\(\) first"):
        policy.act(np.zeros(2))
    policy.reset()
    for _ in range(HORIZON):
        policy.act(np.zeros(2))
    with pytest.raises(PipelineError, match=r"the episode is over: it has the 12 steps of the horizon.*call reset\(\)"):
        policy.act(np.zeros(2))
    batch = load_policy(written, batch=3)
    batch.reset([0, 2])
    with pytest.raises(PipelineError, match="no episode of row 1 has begun"):
        batch.act(np.zeros((3, 2)))


@pytest.mark.parametrize(("batch", "rows"), [(None, 0), (3, 3), (3, [True, False])])
def test_rows_that_are_not_there_are_refused(written: Path, batch: int | None, rows: object) -> None:
    with pytest.raises(PipelineError, match="reset: rows"):
        load_policy(written, batch=batch).reset(rows)  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="batch: 0 environments"):
        load_policy(written, batch=0)


def test_it_is_exported_lazily() -> None:
    assert pd_pipeline.load_policy is load_policy
    with pytest.raises(AttributeError, match="no attribute 'save_policy'"):
        _ = pd_pipeline.save_policy


NEITHER = ("dagster", "dvc", "gymnasium", "mujoco", "metaworld", "polars", "pyarrow", "torch._dynamo", "matplotlib")


def test_loading_and_acting_import_no_pipeline_and_no_simulator(written: Path) -> None:
    code = f"""
import sys
import pd_pipeline
assert 'torch' not in sys.modules, 'importing the package is light'
policy = pd_pipeline.load_policy({str(written)!r})
policy.reset()
policy.act([0.0, 0.0])
print([name for name in {NEITHER} if name in sys.modules])
print([name for name in sys.modules if name.startswith('pd_pipeline.tuning')])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=written.parent)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
