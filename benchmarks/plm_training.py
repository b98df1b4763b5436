"""Training steps of the PLM against Hugging Face's Decision Transformer fed by per-sample Python.

The reference batch has 16 samples of each of 15 tasks, K* = 5, K = 20, width 128, 3 layers, 1 head, dropout 0.1. A step
includes building the batch, forward, backward, clipping and the optimizer. Ours trains as stage plm does by default
(bf16 where the hardware supports it); the peer is `transformers.DecisionTransformerModel` in eager float32. Its batches
are cut, normalised, padded and concatenated sample by sample, as is common in Decision Transformer code.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Figure, alternate, at_least, command, share_of, timed
from benchmarks.device import BATCH, CONTEXT, HORIZON, PER_TASK, PROMPT, TASKS, Bench
from benchmarks.synthetic import ACTION_SIZE, OBSERVATION_SIZE
from benchmarks.training import matmul_rate, operations, training_step
from pd_pipeline.prompts.segments import Normalization
from pd_pipeline.trajectories.reading import Trajectories

WIDTH, LAYERS, HEADS, DROPOUT = 128, 3, 1, 0.1
CPU = torch.device("cpu")


class PeerData:
    """Trajectories as a list of dictionaries, and batches built one sample after another."""

    def __init__(self, data: Trajectories, normalization: Normalization):
        self.mean = normalization.mean[:OBSERVATION_SIZE]
        self.std = normalization.std[:OBSERVATION_SIZE]
        self.scale = normalization.return_scale
        self.tasks: list[list[dict[str, np.ndarray]]] = [[] for _ in range(TASKS)]
        for episode, task in enumerate(data.task_id):
            rows = slice(data.starts[episode], data.starts[episode + 1])
            self.tasks[task].append(
                {"states": data.observations[rows], "actions": data.actions[rows], "rewards": data.rewards[rows]}
            )

    def segment(self, path: dict[str, np.ndarray], first: int, length: int) -> list[np.ndarray]:
        """`length` steps of a trajectory from `first` on, normalised and padded on the left, with a mask."""
        states = path["states"][first : first + length]
        actions = path["actions"][first : first + length]
        found = len(states)
        timesteps = np.arange(first, first + found)
        returns = np.zeros(len(path["rewards"]) - first, np.float32)
        total = 0.0
        for step in reversed(range(len(returns))):  # the sum of all later rewards, recomputed for each sample
            total += path["rewards"][first + step]
            returns[step] = total
        missing = length - found
        return [
            np.concatenate([np.zeros((missing, OBSERVATION_SIZE)), (states - self.mean) / self.std]),
            np.concatenate([np.zeros((missing, ACTION_SIZE)), actions]),
            np.concatenate([np.zeros(missing), returns[:found] / self.scale])[:, None],
            np.concatenate([np.zeros(missing), timesteps]),
            np.concatenate([np.zeros(missing), np.ones(found)]),
        ]

    def batch(self, rng: np.random.Generator) -> list[torch.Tensor]:
        """States, actions, returns-to-go, timesteps and mask of 240 samples of K* + K steps."""
        samples = []
        for paths in self.tasks:
            for _ in range(PER_TASK):
                prompt_of, window_of = paths[rng.integers(len(paths))], paths[rng.integers(len(paths))]
                prompt = self.segment(prompt_of, int(rng.integers(0, HORIZON - PROMPT)), PROMPT)
                window = self.segment(window_of, int(rng.integers(0, HORIZON - 1)), CONTEXT)
                samples.append([np.concatenate(pair) for pair in zip(prompt, window, strict=True)])
        columns = [torch.from_numpy(np.stack(column)) for column in zip(*samples, strict=True)]
        states, actions, returns, timesteps, mask = columns
        return [states.float(), actions.float(), returns.float(), timesteps.long(), mask.long()]


def peer(data: Trajectories, normalization: Normalization) -> Callable[[], None]:
    """One training step of the peer."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    config = DecisionTransformerConfig(
        state_dim=OBSERVATION_SIZE,
        act_dim=ACTION_SIZE,
        hidden_size=WIDTH,
        max_ep_len=HORIZON,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=4 * WIDTH,
        activation_function="relu",
        n_positions=1024,
        resid_pdrop=DROPOUT,
        embd_pdrop=DROPOUT,
        attn_pdrop=DROPOUT,
    )
    config._attn_implementation = "eager"
    model = DecisionTransformerModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    source, rng = PeerData(data, normalization), np.random.default_rng(0)

    def step() -> None:
        states, actions, returns, timesteps, mask = source.batch(rng)
        predicted = model(
            states=states,
            actions=actions,
            rewards=None,
            returns_to_go=returns,
            timesteps=timesteps,
            attention_mask=mask,
        ).action_preds
        valid = mask[:, PROMPT:].reshape(-1) > 0
        wanted = actions[:, PROMPT:].reshape(-1, ACTION_SIZE)[valid]
        loss = ((predicted[:, PROMPT:].reshape(-1, ACTION_SIZE)[valid] - wanted) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()

    return step


def measure(quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    """Ours and the peer, alternating, and the limit."""
    rounds, steps = (1, 1) if quick else (7, 6)
    bench = Bench.on(CPU, quick)
    policy = bench.policy("128x3", CPU, DROPOUT).train()
    with tempfile.TemporaryDirectory() as work:
        step, trainer = training_step(bench, policy, Path(work))
        peer_step = peer(bench.data, bench.normalization)

        def rate(of: Callable[[], None], count: int) -> float:
            def several() -> None:
                for _ in range(count):
                    of()

            return count * BATCH / timed(several)

        rate(step, 2), rate(peer_step, 1)
        found, reference, ratio = alternate(lambda: rate(step, 3 * steps), lambda: rate(peer_step, steps), rounds)
        limit, cost = matmul_rate(bench), operations(bench, policy)
    figures = [
        at_least("training, against transformers eager", found, reference, "samples/s", goal=4, ratio=ratio),
        share_of("training, against the matmul limit", found, limit / cost, "samples/s"),
    ]
    details = {
        "precision": "bf16" if trainer.bf16 else "float32",
        "threads": torch.get_num_threads(),
        "matmul_gflops": limit / 1e9,
        "megaflop_per_sample": cost / 1e6,
    }
    return figures, details


if __name__ == "__main__":
    command("plm_training", measure)
