"""One goal-conditioned policy for all tasks of a family, trained with Stable-Baselines3's PPO, in rounds.

A round collects one horizon of steps in every lane and updates on them. It is a pure function of the state before it
and (seed, round): the state is saved between rounds, and training resumed after a kill ends with the same bytes.
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize

from pd_pipeline.behavior.learning import LearningParams, rounds_of
from pd_pipeline.behavior.worker_lanes import WorkerLanes
from pd_pipeline.errors import PipelineError
from pd_pipeline.families import goal_policy
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.interruption import Interrupted, terminated
from pd_pipeline.progress import Progress
from pd_pipeline.storage import expect_arrays, load_arrays, remove, save_arrays
from pd_pipeline.workers import cores

STATE = "state.safetensors"
Rows = list[dict[str, float]]
COLUMNS = ("steps", "return_mean", "length_mean", "early_ends")
_log = logging.getLogger("pd_pipeline")


def learn(
    family: Locomotion,
    block: dict[str, Any],
    root: Path,
    params: LearningParams,
    work: Path,
    progress: Progress,
) -> Rows:
    """Train; save `random`, `medium` and `expert` as safetensors in `work`: first, intermediate and last checkpoint.

    `block` is the family's `environment` block, from which workers rebuild it. Returns one row per round: steps, mean
    return and length of its episodes (with exploration noise), and the share that ended early. Raises Interrupted
    after SIGTERM, once the state is saved; where a round takes longer than the seconds that there are to stop, the
    state is the one of the last `checkpoint_seconds`.
    """
    rounds = rounds_of(params, family.name, family.horizon)
    named = {0: "random", max(1, int(rounds * params.medium)): "medium", rounds: "expert"}
    workers = params.workers or cores()
    lanes = WorkerLanes(family, block, root, params.lanes, params.seed, workers, params.ending_cost)
    try:
        with torch.random.fork_rng(devices=[]), _numpy_seed_kept(), terminated() as stop:
            torch.manual_seed(params.seed)
            learner = Learner(lanes, family.horizon, params, rounds)
            rows = _resumed(learner, work / STATE, f"behavior_policies {family.name}")
            saved = time.monotonic()
            for turn in range(len(rows), rounds + 1):
                if turn in named:
                    learner.export(work / f"{named[turn]}.safetensors")
                if turn < rounds:
                    rows.append(learner.round(turn))
                    shown = f"return {rows[-1]['return_mean']:,.1f}"
                    progress(f"behavior_policies {family.name}", turn + 1, rounds, shown)
                stopping = stop()
                if stopping or time.monotonic() - saved > params.checkpoint_seconds:
                    learner.save(work / STATE, rows)
                    saved = time.monotonic()
                if stopping:
                    raise Interrupted
    finally:
        lanes.close()
    return rows


def _resumed(learner: "Learner", path: Path, title: str) -> Rows:
    """The rows of the finished rounds, where a state was saved; a damaged one is removed with a warning."""
    if not path.exists():
        return []
    try:
        return learner.restore(path)
    except PipelineError as error:
        _log.warning("%s: removed an unusable saved state, starting over: %s", title, error)
        remove(path)
        return []


class _numpy_seed_kept:
    """SB3 shuffles with NumPy's global generator: restore its state afterwards."""

    def __enter__(self) -> None:
        self._state = np.random.get_state()  # noqa: NPY002

    def __exit__(self, *_: object) -> None:
        np.random.set_state(self._state)  # noqa: NPY002


class _OneThreadWhileCollecting(BaseCallback):
    """Idle PyTorch threads would take cores from the processes that step environments."""

    def __init__(self, otherwise: int):
        super().__init__()
        self._otherwise = otherwise

    def _on_rollout_start(self) -> None:
        torch.set_num_threads(1)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        torch.set_num_threads(self._otherwise)


class Learner:
    """PPO with the running statistics of its inputs and returns."""

    def __init__(self, lanes: WorkerLanes, horizon: int, params: LearningParams, rounds: int):
        self.params, self.lanes, self._rounds = params, lanes, rounds
        self.normalized = VecNormalize(lanes, clip_obs=goal_policy.INPUT_CLIP, gamma=params.discount)
        self.ppo = PPO(
            "MlpPolicy",
            self.normalized,
            n_steps=horizon,
            batch_size=params.batch,
            n_epochs=params.epochs,
            learning_rate=self._rate,
            gamma=params.discount,
            gae_lambda=params.advantage_decay,
            clip_range=params.clip,
            ent_coef=params.entropy,
            policy_kwargs={
                "net_arch": [params.width] * params.layers,
                "activation_fn": torch.nn.ReLU,
                "log_std_init": math.log(params.initial_deviation),
            },
            stats_window_size=params.lanes * horizon,  # every episode of a round
            device="cpu",
        )
        self.ppo.set_logger(Logger(folder=None, output_formats=[]))
        self._horizon = horizon

    def _rate(self, _: float) -> float:
        """Learning rate at this round; SB3's argument, the remainder of the round, is ignored."""
        return self.params.learning_rate * (0.05 + 0.95 * (1 - self.lanes.turn / self._rounds))

    def round(self, turn: int) -> dict[str, float]:
        """Collect from all lanes and update; statistics of the episodes that ended."""
        words = np.random.SeedSequence([self.params.seed, turn]).generate_state(2)
        torch.manual_seed(int(words[0]))
        np.random.seed(int(words[1]))  # noqa: NPY002
        self.lanes.turn = turn
        steps = self.params.lanes * self._horizon
        threads = torch.get_num_threads()
        try:
            self.ppo.learn(steps, callback=_OneThreadWhileCollecting(threads))  # starts with a reset
        finally:
            torch.set_num_threads(threads)
        episodes = list(self.ppo.ep_info_buffer or [])
        return {
            "steps": (turn + 1) * steps,
            "return_mean": float(np.mean([e["r"] for e in episodes])) if episodes else float("nan"),
            "length_mean": float(np.mean([e["l"] for e in episodes])) if episodes else float("nan"),
            "early_ends": float(np.mean([e["l"] < self._horizon for e in episodes])) if episodes else float("nan"),
        }

    def export(self, path: Path) -> None:
        """Write the current policy in the format of `goal_policy`."""
        policy: Any = self.ppo.policy
        linears = [m for m in policy.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)] + [policy.action_net]
        statistics = self._statistics()["inputs"]
        goal_policy.save(
            path,
            [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in linears],
            mean=statistics.mean,
            deviation=np.sqrt(statistics.var + self.normalized.epsilon),
            log_std=policy.log_std.detach().numpy(),
        )

    def save(self, path: Path, rows: Rows) -> None:
        """Save everything that later rounds depend on."""
        arrays = {f"policy.{name}": t.numpy() for name, t in self.ppo.policy.state_dict().items()}
        for i, moments in self.ppo.policy.optimizer.state_dict()["state"].items():
            arrays |= {f"optimizer.{i}.{name}": t.numpy() for name, t in moments.items()}
        for name, statistics in self._statistics().items():
            arrays |= {f"{name}.{part}": np.asarray(getattr(statistics, part)) for part in ("mean", "var", "count")}
        save_arrays(path, arrays, {"rows": json.dumps(rows)})

    def restore(self, path: Path) -> Rows:
        """Load what `save` wrote; returns the rows of the finished rounds. Raises PipelineError, changing nothing."""
        arrays, metadata = load_arrays(path)
        self._check(path, arrays)
        rows = self._rows(path, metadata)
        tensors = {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}
        policy = self.ppo.policy
        moments: dict[int, dict[str, torch.Tensor]] = {}
        policy.load_state_dict({name: tensors[f"policy.{name}"] for name in policy.state_dict()})
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                number, _, moment = rest.partition(".")
                moments.setdefault(int(number), {})[moment] = tensor
        groups = policy.optimizer.state_dict()["param_groups"]
        policy.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for name, statistics in self._statistics().items():
            statistics.mean, statistics.var = arrays[f"{name}.mean"].copy(), arrays[f"{name}.var"].copy()
            statistics.count = float(arrays[f"{name}.count"])
        return rows

    def _check(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        """Raise PipelineError unless names, shapes and types are those of this learner."""
        like = {f"policy.{name}": tensor.numpy() for name, tensor in self.ppo.policy.state_dict().items()}
        for i, parameter in enumerate(self.ppo.policy.parameters()):
            value = parameter.detach().numpy()
            like |= {f"optimizer.{i}.{moment}": value for moment in ("exp_avg", "exp_avg_sq")}
            like[f"optimizer.{i}.step"] = np.zeros((), np.float32)
        for name, statistics in self._statistics().items():
            like |= {f"{name}.{part}": np.asarray(getattr(statistics, part)) for part in ("mean", "var", "count")}
        expect_arrays(path, arrays, {name: array.shape for name, array in like.items()})
        if wrong := [name for name, array in like.items() if arrays[name].dtype != array.dtype]:
            raise PipelineError(f"{path}: tensor '{wrong[0]}' is {arrays[wrong[0]].dtype}, not {like[wrong[0]].dtype}")
        if any((arrays[f"{name}.{part}"] < 0).any() for name in self._statistics() for part in ("var", "count")):
            raise PipelineError(f"{path}: a variance or a count of its statistics is negative")

    def _rows(self, path: Path, metadata: dict[str, str]) -> Rows:
        """The rows of the finished rounds. Raises PipelineError where they do not fit these parameters."""
        try:
            rows = json.loads(metadata["rows"])
        except (KeyError, ValueError, RecursionError) as error:
            raise PipelineError(f"{path}: its rows cannot be read: {error}") from None
        steps = self.params.lanes * self._horizon
        well_formed = (
            isinstance(rows, list)
            and len(rows) <= self._rounds
            and all(
                isinstance(row, dict)
                and set(row) == set(COLUMNS)
                and all(isinstance(v, int | float) for v in row.values())
                for row in rows
            )
        )
        expected = [(turn + 1) * steps for turn in range(len(rows))] if well_formed else []
        if not expected or [row["steps"] for row in rows] != expected:
            raise PipelineError(f"{path}: its rows do not fit rounds of {steps:,} steps")
        return rows

    def _statistics(self) -> dict[str, Any]:
        return {"inputs": self.normalized.obs_rms, "returns": self.normalized.ret_rms}
