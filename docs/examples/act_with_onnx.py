"""Acts with an exported policy: python act_with_onnx.py FOLDER < steps.jsonl

One line per step comes in, such as {"observation": [0.1, -0.3], "reward": -0.5}, and one action per line goes out.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


class Policy:
    def __init__(self, folder):
        self.about = json.loads(Path(folder, "policy.onnx.json").read_text())
        self.session = onnxruntime.InferenceSession(Path(folder, "policy.onnx"))

    def reset(self):
        self.steps, self.still_asked = [], self.about["target_return"]

    def act(self, observation, reward=0.0):
        about = {name: np.array(value) if isinstance(value, list) else value for name, value in self.about.items()}
        self.still_asked -= reward  # of the previous step
        scaled = (np.array(observation) - about["observation_mean"]) / about["observation_std"]
        no_action = np.zeros(len(about["action_mean"]))  # that of the current step is not read
        self.steps.append([self.still_asked / about["return_scale"], scaled, no_action, len(self.steps)])
        columns = zip(self.about["inputs"], zip(*self.steps[-about["window"] :]))
        inputs = {port["name"]: np.array([column], port["type"]) for port, column in columns}
        self.steps[-1][2] = action = self.session.run(None, inputs)[0][0]
        return np.clip(action * about["action_std"] + about["action_mean"], about["action_low"], about["action_high"])


if __name__ == "__main__":
    policy = Policy(sys.argv[1])
    policy.reset()
    for line in sys.stdin:
        print(json.dumps(policy.act(**json.loads(line)).tolist()), flush=True)
