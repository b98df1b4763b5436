"""The stages tuned_<method>: prepare what a method is given, run it, write what it leaves."""

import importlib
import time
from typing import Any

import numpy as np

from pd_pipeline.stage import StageContext
from pd_pipeline.storage import COST_FILE, save_arrays, write_json
from pd_pipeline.training.diffuser import load_diffuser
from pd_pipeline.training.loop import pick_device, weights
from pd_pipeline.training.plm import load_policy
from pd_pipeline.trajectories.reading import read
from pd_pipeline.tuning.protocol import FewShot, Pretrained, Run, draw_few_shot


def run(context: StageContext) -> dict[str, Any]:
    """Write `prompts.safetensors`, `log.csv`, `summary.json`, `cost.json` and what weights were tuned."""
    method = importlib.import_module(type(context.params).__module__)  # a variant's stage has another name
    params, seed = context.params, context.seed
    began = time.monotonic()
    device = pick_device(getattr(params, "device", "cpu"))
    policy, normalization = load_policy(context.inputs["plm"], device)
    diffuser = load_diffuser(context.inputs["diffuser"], device) if "diffuser" in context.inputs else None
    plm = Pretrained(policy, normalization, device, diffuser)
    data = read(context.inputs["trajectories"] / f"{params.quality}.parquet", [context.task])
    chosen, _ = draw_few_shot(data, params, seed)
    few_shot = FewShot.of(data.select(chosen), plm)
    title = f"{context.stage} {context.key}"
    run_ = Run(context.work, context.logs, title, context.progress)
    task_seed = int(np.random.SeedSequence([seed, context.task]).generate_state(1)[0])
    tuned = method.tune(plm, few_shot, params, task_seed, run_)
    tuned.prompts.save(context.out / "prompts.safetensors")
    if tuned.policy is not None:
        save_arrays(context.out / "policy.safetensors", weights(tuned.policy))
    for name, denoiser in tuned.denoisers.items():
        save_arrays(context.out / f"{name}.safetensors", weights(denoiser))
    if tuned.history.rows:
        tuned.history.write(context.out / "log.csv")
    summary = {
        "tuned_parameters": tuned.tuned_parameters,
        "plm_passes": tuned.plm_passes,
        "environment_episodes": tuned.environment_episodes,
        "few_shot_episodes": few_shot.data.episode_id.tolist(),
        "quality": params.quality,
    }
    write_json(context.out / "summary.json", summary)
    write_json(context.out / COST_FILE, {"seconds": time.monotonic() - began, "device": str(device)})
    return {"tuned_parameters": tuned.tuned_parameters, "plm_passes": tuned.plm_passes}
