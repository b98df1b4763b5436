"""Pictures of recorded rollouts: the actions are taken again in the simulator, and frames are rendered.

In a process of its own (`python -m pd_pipeline.reporting.replay JOB`), since MuJoCo binds to one OpenGL when it is
imported, and a missing or broken one may end the process.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pd_pipeline.acting.environments import episode_seed
from pd_pipeline.families.base import load_family
from pd_pipeline.reporting.rollouts import Episode
from pd_pipeline.storage import load_arrays, save_arrays, write_json

FRAMES = 40
BAR = (27, 31, 36)  # behind captions and between pictures
TIMEOUT = 180.0  # seconds for one try
BACKENDS: tuple[str, ...] = ("egl", "osmesa") if sys.platform == "linux" else ("",)


@dataclass(frozen=True)
class Replay:
    """Frames of some episodes side by side, or why there are none."""

    episodes: tuple[Episode, ...] = ()
    steps: np.ndarray = field(default_factory=lambda: np.empty(0, int))  # (f,) step of each frame
    frames: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.uint8))  # (episodes, f, height, width, 3)
    solved: np.ndarray = field(default_factory=lambda: np.empty((0, 0), bool))  # (episodes, f) whether by then
    drift: float = 0.0
    """Largest difference of an observation from the recorded one."""
    missing: str = ""
    """Why there is no picture; empty where there is one."""


def replay(
    episodes: Sequence[Episode],
    family: str,
    block: dict[str, Any],
    root: Path,
    work: Path,
    starts: Sequence[int] | None = None,
    frames: int = FRAMES,
) -> Replay:
    """Render `episodes` of a family with the first OpenGL that works; `work` is a directory for temporary files.

    `starts` are the seeds of their resets, by default those of a first prompt. Of longer episodes, `frames` evenly
    spaced steps are drawn.
    """
    job = work / "replay"
    job.mkdir(parents=True, exist_ok=True)
    for index, episode in enumerate(episodes):
        save_arrays(job / f"{index}.safetensors", {"actions": episode.actions, "observations": episode.observations})
    if starts is None:
        starts = [episode_seed(episode.seed, episode.task, 0) for episode in episodes]
    keys = [{"task": episode.task, "seed": seed} for episode, seed in zip(episodes, starts, strict=True)]
    described = {"family": family, "block": block, "root": str(root), "episodes": keys, "frames": frames}
    write_json(job / "job.json", described)
    own = os.environ.get("MUJOCO_GL")
    tried = []
    for backend in (own,) if own else BACKENDS:
        reason = _try(job, backend)
        if not reason:
            arrays, _ = load_arrays(job / "frames.safetensors")
            if not arrays["frames"].size:
                return Replay(missing="This family draws no pictures.")
            return Replay(
                tuple(episodes), arrays["steps"], arrays["frames"], arrays["solved"], float(arrays["drift"][0])
            )
        tried.append(f"{backend or 'default'}: {reason}")
    return Replay(missing=f"No picture: no off-screen OpenGL was found on this machine ({'; '.join(tried)}).")


def _try(job: Path, backend: str) -> str:
    """Run the job with one OpenGL; empty if it worked, else why not."""
    environment = os.environ | ({"MUJOCO_GL": backend} if backend else {})
    command = [sys.executable, "-m", "pd_pipeline.reporting.replay", str(job)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT:.0f} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith((" ", "Exception ignored"))]
    return lines[-1][:200] if lines else f"exit code {done.returncode}"


def _work(job: Path) -> None:
    """The other process: take the actions again, keep frames evenly spaced over the episode."""
    description = json.loads((job / "job.json").read_text())
    family = load_family(description["family"], description["block"], Path(description["root"]))
    arrays = [load_arrays(job / f"{index}.safetensors")[0] for index in range(len(description["episodes"]))]
    length = max(len(a["actions"]) for a in arrays)
    steps = np.unique(np.linspace(0, length - 1, min(description["frames"], length)).astype(int))
    frames, solved, drift = [], [], 0.0
    for key, recorded in zip(description["episodes"], arrays, strict=True):
        environment = family.make(key["task"])
        observation, _ = environment.reset(seed=key["seed"])
        reached, pictures, states = False, [], []
        for step in range(length):
            if step < len(recorded["actions"]):
                drift = max(drift, float(np.abs(observation - recorded["observations"][step]).max()))
            if step in steps:
                picture = family.frame_pixels(environment)
                if picture is None:
                    break
                pictures.append(picture)
                states.append(reached)
            if step < len(recorded["actions"]):
                observation, _, _, _, info = environment.step(recorded["actions"][step])
                reached |= bool(info.get("success", False))
        environment.close()
        frames.append(pictures)
        solved.append(states)
    save_arrays(
        job / "frames.safetensors",
        {
            "frames": np.array(frames, np.uint8),
            "solved": np.array(solved, bool),
            "steps": steps,
            "drift": np.array([drift]),
        },
    )


def captioned(replay: Replay, index: int) -> list[Image.Image]:
    """The frames of one episode, each with its method, step and state written above it."""
    font = ImageFont.load_default(13)
    images = []
    for pixels, step, solved in zip(replay.frames[index], replay.steps, replay.solved[index], strict=True):
        height, width = pixels.shape[:2]
        image = Image.new("RGB", (width, height + 22), BAR)
        image.paste(Image.fromarray(pixels), (0, 22))
        draw = ImageDraw.Draw(image)
        draw.text((7, 3), replay.episodes[index].method, font=font, fill=(255, 255, 255))
        text, color = ("solved", (120, 220, 150)) if solved else ("", (255, 255, 255))
        state = f"{text}  step {step}".strip()
        draw.text((width - 7 - draw.textlength(state, font=font), 3), state, font=font, fill=color)
        images.append(image)
    return images


def animation(replay: Replay, milliseconds: int = 110) -> bytes:
    """All episodes side by side as one animated WebP, so that they stay in step."""
    columns = [captioned(replay, index) for index in range(len(replay.episodes))]
    joined = [beside(list(images)) for images in zip(*columns, strict=True)]
    buffer = io.BytesIO()
    rest = {"append_images": joined[1:], "duration": milliseconds, "loop": 0}
    joined[0].save(buffer, "WEBP", save_all=True, quality=72, method=4, **rest)
    return buffer.getvalue()


def filmstrip(replay: Replay, count: int = 4) -> bytes:
    """A few frames of each episode as one still WebP, one row per episode: for print, and where motion is unwanted."""
    picked = (np.linspace(0, 1, count) ** 2 * (len(replay.steps) - 1)).astype(int)  # most happens early
    rows = [
        beside([images[i] for i in picked])
        for images in map(lambda i: captioned(replay, i), range(len(replay.episodes)))
    ]
    buffer = io.BytesIO()
    beside(rows, down=True).save(buffer, "WEBP", quality=78, method=4)
    return buffer.getvalue()


def beside(images: list[Image.Image], down: bool = False, gap: int = 4) -> Image.Image:
    """Images of equal size in a row, or a column."""
    width, height = images[0].size
    step = (0, height + gap) if down else (width + gap, 0)
    count = len(images) - 1
    joined = Image.new("RGB", (width + step[0] * count, height + step[1] * count), BAR)
    for index, image in enumerate(images):
        joined.paste(image, (step[0] * index, step[1] * index))
    return joined


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
