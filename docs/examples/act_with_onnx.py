"""Acts with an exported policy, without pd_pipeline: python act_with_onnx.py FOLDER < steps.jsonl

One line per step comes in, such as {"observation": [0.1, -0.3], "reward": -0.5}; one action per line goes out.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def act(about: dict, session: onnxruntime.InferenceSession, steps: list, observation: list) -> list:
    """The action for an observation; `steps` are those of the episode so far, and the current one is added."""
    assert len(observation) == len(about["observation_mean"]), f"{len(observation)} numbers"
    scaled = (np.array(observation) - about["observation_mean"]) / about["observation_std"]
    no_action = np.zeros(len(about["action_mean"]))  # that of the current step is not read
    steps.append([about["target_return"] / about["return_scale"], scaled, no_action, len(steps)])
    columns = zip(about["inputs"], zip(*steps[-about["window"] :], strict=True), strict=True)
    action = session.run(None, {port["name"]: np.array([values], port["type"]) for port, values in columns})[0][0]
    steps[-1][2] = action
    in_units = action * about["action_std"] + about["action_mean"]
    return np.clip(in_units, about["action_low"], about["action_high"]).tolist()


if __name__ == "__main__":
    folder, steps = Path(sys.argv[1]), []
    about = json.loads((folder / "policy.onnx.json").read_text())
    session = onnxruntime.InferenceSession(folder / "policy.onnx")
    for line in sys.stdin:
        step = json.loads(line)
        about["target_return"] -= step.get("reward", 0.0)  # what is still asked for, after the previous step's reward
        print(json.dumps(act(about, session, steps, step["observation"])), flush=True)
