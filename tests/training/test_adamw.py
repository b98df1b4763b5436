"""AdamW by PyTorch's function: the numbers of its class, without the compiler."""

import subprocess
import sys

import torch
from torch import nn

from pd_pipeline.training.adamw import AdamW

TRAINED = """\
import sys, torch
from pd_pipeline.training.adamw import AdamW
net = torch.nn.Linear(3, 2)
optimizer = AdamW(dict(net.named_parameters()), 0.01)
net(torch.ones(4, 3)).sum().backward()
torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
optimizer.step(0.1)
print("torch._dynamo" in sys.modules)
"""


def nets() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    return one, other


def test_it_is_the_class_of_pytorch_to_the_bit() -> None:
    net, theirs = nets()
    ours = AdamW(dict(net.named_parameters()), weight_decay=0.1)
    reference = torch.optim.AdamW(theirs.parameters(), weight_decay=0.1, fused=True)
    for step in range(6):
        x = torch.randn(4, 3)
        for model, optimizer in ((net, ours), (theirs, reference)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
        ours.step(0.1 / (step + 1))
        reference.param_groups[0]["lr"] = 0.1 / (step + 1)
        reference.step()
        if step == 2:  # others go on with its moments
            before, ours = ours, AdamW(dict(net.named_parameters()), weight_decay=0.1)
            ours.restore(3, before.first, before.second)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(net.get_parameter(name), parameter)
        moments = reference.state[parameter]
        assert torch.equal(ours.first[name], moments["exp_avg"])
        assert torch.equal(ours.second[name], moments["exp_avg_sq"])


def test_a_parameter_without_a_gradient_stays() -> None:
    net, before = nets()
    optimizer = AdamW(dict(net.named_parameters()), weight_decay=0.1)
    net.weight.grad = torch.ones(2, 3)
    optimizer.step(0.1)
    assert torch.equal(net.bias, before.bias)
    assert not torch.equal(net.weight, before.weight)
    optimizer.zero_grad()
    assert net.weight.grad is None


def test_the_compiler_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", TRAINED], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
