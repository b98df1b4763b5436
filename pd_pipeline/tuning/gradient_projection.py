"""Projection of the guidance gradient off the diffusion gradient (eq. 8 and 9), as pure functions.

A gradient is a list of tensors, one per parameter. Equation 8 leaves open how the basis B is built; both readings are
here: `project_flat` treats a whole gradient, or one layer's, as one vector; `project_rows` removes from the rows of a
weight's gradient the right singular subspace of the other gradient (as TRGP does, Lin et al. 2022).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Gradient = Sequence[Tensor]
Mode = Literal["projection", "sum", "dm_only", "dt_only"]
Reading = Literal["flat", "layer_flat", "layer_svd"]


def inner(a: Gradient, b: Gradient) -> Tensor:
    """<a, b> over all parameters, a scalar."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def norm(a: Gradient) -> Tensor:
    """Euclidean norm over all parameters, a scalar."""
    return inner(a, a).sqrt()


def cosine(a: Gradient, b: Gradient) -> Tensor:
    """Cosine of the angle between two gradients; 0 where one of them is zero."""
    product = norm(a) * norm(b)
    return torch.where(product > 0, inner(a, b) / product.clamp(min=torch.finfo(product.dtype).tiny), 0.0)


def project_flat(g: Gradient, off: Gradient) -> list[Tensor]:
    """g - <g, off> / |off|^2 off: the part of g orthogonal to `off`, all parameters as one vector."""
    square = inner(off, off)
    factor = torch.where(square > 0, inner(g, off) / square.clamp(min=torch.finfo(square.dtype).tiny), 0.0)
    return [x - factor * y for x, y in zip(g, off, strict=True)]


def project_rows(g: Tensor, off: Tensor, energy: float = 0.95) -> Tensor:
    """G (I - V V^T) for matrices (out, in); V: leading right singular vectors of `off` with a share `energy`.

    Other shapes are treated as (first, rest), vectors as one row.
    """
    rows = g.reshape(g.shape[0], -1) if g.dim() > 1 else g.reshape(1, -1)  # (out, in)
    _, values, vectors = torch.linalg.svd(off.reshape(rows.shape), full_matrices=False)  # (r,), (r, in)
    share = values.square().cumsum(0) / values.square().sum().clamp(min=torch.finfo(values.dtype).tiny)
    rank = int((share < energy).sum()) + 1
    basis = vectors[:rank] * (values[:rank] > 0).unsqueeze(1)  # no direction where `off` is zero
    return (rows - rows @ basis.T @ basis).reshape(g.shape)


def project(g: Gradient, off: Gradient, reading: Reading, energy: float) -> list[Tensor]:
    """The projection of eq. 8 in one of its readings."""
    if reading == "flat":
        return project_flat(g, off)
    if reading == "layer_flat":
        return [project_flat([x], [y])[0] for x, y in zip(g, off, strict=True)]
    return [project_rows(x, y, energy) for x, y in zip(g, off, strict=True)]


def combine(
    diffusion: Gradient,
    guidance: Gradient,
    weight: float,
    mode: Mode = "projection",
    reading: Reading = "flat",
    test: Literal["global", "layer"] = "global",
    energy: float = 0.95,
) -> tuple[list[Tensor], float]:
    """The update direction of eq. 9, and the share of parameters whose guidance was projected.

    `test` sets where <g_DM, g_DT> < 0 is tested: once for all parameters, as in eq. 9, or per layer. With a layer test,
    `flat` is flat within each layer: parts of a projection of the whole gradient are orthogonal to nothing.
    """
    if mode == "dm_only":
        return list(diffusion), 0.0
    if mode == "dt_only":
        return [weight * x for x in guidance], 0.0
    if mode == "sum":
        return [x + weight * y for x, y in zip(diffusion, guidance, strict=True)], 0.0
    if test == "layer" and reading == "flat":
        reading = "layer_flat"
    if test == "global":
        conflicts = [bool(inner(diffusion, guidance) < 0)] * len(diffusion)
    else:
        conflicts = [bool((x * y).sum() < 0) for x, y in zip(diffusion, guidance, strict=True)]
    projected = project(guidance, diffusion, reading, energy) if any(conflicts) else guidance
    chosen = [p if c else g for p, g, c in zip(projected, guidance, conflicts, strict=True)]
    share = sum(conflicts) / len(conflicts)
    return [x + weight * y for x, y in zip(diffusion, chosen, strict=True)], share
