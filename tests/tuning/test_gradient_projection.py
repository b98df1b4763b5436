"""The projection of eq. 8 and 9: its algebra on any shapes, and cases computed by hand."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from pd_pipeline.tuning.gradient_projection import (
    Mode,
    Reading,
    combine,
    cosine,
    inner,
    norm,
    project,
    project_flat,
    project_rows,
)

READINGS, MODES = get_args(Reading), get_args(Mode)

shapes = st.lists(
    st.sampled_from([(), (1,), (4,), (3, 2), (2, 3), (4, 4), (1, 5), (5, 1), (2, 3, 2)]), min_size=1, max_size=4
)


@st.composite
def gradients(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor]]:
    """Two gradients over the same layers, float64; a layer of either may be zero."""
    layers = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scales = st.sampled_from([0.0, 1e-3, 1.0, 1e3])
    pair = [[torch.tensor(draw(scales) * rng.normal(size=shape)) for shape in layers] for _ in range(2)]
    return pair[0], pair[1]


def close(a: Tensor | float, b: Tensor | float, scale: Tensor | float = 1.0) -> bool:
    return abs(float(a) - float(b)) <= 1e-9 * max(1.0, float(scale))


@given(gradients())
def test_inner_product_norm_and_cosine(pair: tuple[list[Tensor], list[Tensor]]) -> None:
    a, b = (torch.cat([x.reshape(-1) for x in g]) for g in pair)
    assert close(inner(*pair), a @ b, a.norm() * b.norm())
    assert close(norm(pair[0]), a.norm(), a.norm())
    expected = float(a @ b / (a.norm() * b.norm())) if a.norm() * b.norm() > 0 else 0.0
    assert float(cosine(*pair)) == pytest.approx(expected, abs=1e-9)


@given(gradients())
def test_flat_is_orthogonal_shorter_and_idempotent(pair: tuple[list[Tensor], list[Tensor]]) -> None:
    g, off = pair
    found = project_flat(g, off)
    scale = norm(g) * norm(off)
    assert close(inner(found, off), 0.0, scale)
    assert norm(found) <= norm(g) * (1 + 1e-9)
    for once, twice in zip(found, project_flat(found, off), strict=True):
        torch.testing.assert_close(once, twice, atol=1e-9 * float(1 + norm(g)), rtol=1e-9)
    if norm(off) == 0:
        for x, y in zip(found, g, strict=True):
            assert torch.equal(x, y)


@given(gradients())
def test_layer_flat_is_orthogonal_in_every_layer(pair: tuple[list[Tensor], list[Tensor]]) -> None:
    g, off = pair
    for x, y, original in zip(project(g, off, "layer_flat", 0.95), off, g, strict=True):
        assert close((x * y).sum(), 0.0, original.norm() * y.norm())


@given(gradients())
def test_layer_svd_at_full_energy_is_orthogonal_to_every_row(pair: tuple[list[Tensor], list[Tensor]]) -> None:
    g, off = pair
    for x, y, original in zip(project(g, off, "layer_svd", 1.0), off, g, strict=True):
        assert x.shape == original.shape
        rows = (
            (x.reshape(x.shape[0], -1), y.reshape(y.shape[0], -1))
            if x.dim() > 1
            else (x.reshape(1, -1), y.reshape(1, -1))
        )
        products = rows[0] @ rows[1].T
        assert products.abs().max() <= 1e-6 * max(1.0, float(original.norm() * y.norm()))
        assert x.norm() <= original.norm() * (1 + 1e-9)


@given(gradients(), st.floats(0.3, 0.99))
def test_layer_svd_removes_the_leading_subspace_and_nothing_else(
    pair: tuple[list[Tensor], list[Tensor]], energy: float
) -> None:
    for g, off in zip(*pair, strict=True):
        if g.dim() != 2 or off.norm() == 0:
            continue
        _, values, vectors = torch.linalg.svd(off, full_matrices=False)
        share = (values**2).cumsum(0) / (values**2).sum()
        assume((share - energy).abs().min() > 1e-6)
        rank = int(torch.searchsorted(share, energy)) + 1
        found = project_rows(g, off, energy)
        bound = 1e-8 * max(1.0, float(g.norm()))
        assert (found @ vectors[:rank].T).abs().max() <= bound
        removed = g - found
        torch.testing.assert_close(removed, removed @ vectors[:rank].T @ vectors[:rank], atol=bound, rtol=0)


@given(gradients(), st.sampled_from(READINGS))
def test_nothing_is_removed_where_the_other_gradient_is_zero(
    pair: tuple[list[Tensor], list[Tensor]], reading: Reading
) -> None:
    g, _ = pair
    for x, y in zip(project(g, [torch.zeros_like(x) for x in g], reading, 0.95), g, strict=True):
        assert torch.equal(x, y)


@given(gradients(), st.sampled_from(READINGS), st.sampled_from(["global", "layer"]), st.floats(0, 10))
def test_gradients_that_agree_are_added_unchanged(
    pair: tuple[list[Tensor], list[Tensor]], reading: Reading, test: str, weight: float
) -> None:
    g_dm, g_dt = pair
    g_dt = [y if (x * y).sum() >= 0 else -y for x, y in zip(g_dm, g_dt, strict=True)]  # agree in every layer
    update, share = combine(g_dm, g_dt, weight, "projection", reading, test)
    assert share == 0
    for x, y, z in zip(update, g_dm, g_dt, strict=True):
        torch.testing.assert_close(x, y + weight * z)


@given(gradients(), st.floats(0, 10))
def test_the_update_never_increases_l_dm(pair: tuple[list[Tensor], list[Tensor]], weight: float) -> None:
    """The purpose of eq. 9: along g_DM the update is at least g_DM itself."""
    g_dm, g_dt = pair
    update, share = combine(g_dm, g_dt, weight)
    along, square = inner(update, g_dm), inner(g_dm, g_dm)
    scale = norm(g_dm) * (norm(g_dm) + weight * norm(g_dt))
    assert along >= square - 1e-9 * max(1.0, float(scale))
    assert share == float(inner(g_dm, g_dt) < 0)
    if share:
        assert close(along, square, scale)


@given(gradients(), st.floats(0, 10))
def test_a_test_per_layer_projects_only_layers_that_conflict(
    pair: tuple[list[Tensor], list[Tensor]], weight: float
) -> None:
    g_dm, g_dt = pair
    update, share = combine(g_dm, g_dt, weight, "projection", "layer_flat", "layer")
    conflicts = [bool((x * y).sum() < 0) for x, y in zip(g_dm, g_dt, strict=True)]
    assert share == pytest.approx(sum(conflicts) / len(conflicts))
    for u, x, y, conflict in zip(update, g_dm, g_dt, conflicts, strict=True):
        expected = x + weight * (project_flat([y], [x])[0] if conflict else y)
        torch.testing.assert_close(u, expected)


def tensors(*values: list) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def equal(found: list[Tensor], *expected: list) -> bool:
    """Whether each layer has the expected shape and, to rounding, the expected values."""
    pairs = list(zip(found, tensors(*expected), strict=True))
    return all(x.shape == y.shape and torch.allclose(x, y, atol=1e-12, rtol=0) for x, y in pairs)


def test_flat_by_hand() -> None:
    """<g, off> = 1*3 + 2*0 + 1*4 = 7 over |off|^2 = 25 times off."""
    found = project_flat(tensors([1.0, 2.0], [[1.0]]), tensors([3.0, 0.0], [[4.0]]))
    assert equal(found, [1 - 21 / 25, 2.0], [[1 - 28 / 25]])


def test_rows_by_hand() -> None:
    """`off` spans only the first axis: the first column is removed, whatever its values."""
    found = project_rows(*tensors([[1.0, 2.0], [3.0, 4.0]], [[5.0, 0.0], [-7.0, 0.0]]), energy=1.0)
    assert equal([found], [[0.0, 2.0], [0.0, 4.0]])


def test_energy_by_hand() -> None:
    """Singular values 3 and 1: the first direction holds 0.9 of the energy."""
    g, off = tensors([[1.0, 2.0], [3.0, 4.0]], [[3.0, 0.0], [0.0, 1.0]])
    assert equal([project_rows(g, off, 0.8)], [[0.0, 2.0], [0.0, 4.0]])
    assert equal([project_rows(g, off, 0.95)], [[0.0, 0.0], [0.0, 0.0]])


def test_eq_9_by_hand() -> None:
    """g_DM = (1, 0), g_DT = (-1, 1) conflict; projected g_DT is (0, 1)."""
    g_dm, g_dt = tensors([1.0, 0.0]), tensors([-1.0, 1.0])
    assert equal(combine(g_dm, g_dt, 2.0)[0], [1.0, 2.0])
    assert equal(combine(g_dm, g_dt, 2.0, "sum")[0], [-1.0, 2.0])
    assert equal(combine(g_dm, g_dt, 2.0, "dm_only")[0], [1.0, 0.0])
    assert equal(combine(g_dm, g_dt, 2.0, "dt_only")[0], [-2.0, 2.0])
    assert [combine(g_dm, g_dt, 2.0, mode)[1] for mode in MODES] == [1.0, 0.0, 0.0, 0.0]


def test_global_and_layer_tests_differ_by_hand() -> None:
    """Layers (1) and (1) against (-1) and (3): agree as a whole (2), the first layer conflicts."""
    g_dm, g_dt = tensors([1.0], [1.0]), tensors([-1.0], [3.0])
    found, share = combine(g_dm, g_dt, 1.0, "projection", "layer_flat", "global")
    assert equal(found, [0.0], [4.0])
    assert share == 0
    found, share = combine(g_dm, g_dt, 1.0, "projection", "layer_flat", "layer")
    assert equal(found, [1.0], [4.0])
    assert share == 0.5


def test_the_readings_differ_by_hand() -> None:
    """Layers (1, 0) and (0, 1) against (-1, 1) and (1, -1): <., .> = -2."""
    g_dm, g_dt = tensors([1.0, 0.0], [0.0, 1.0]), tensors([-1.0, 1.0], [1.0, -1.0])
    assert equal(combine(g_dm, g_dt, 1.0, "projection", "flat")[0], [1.0, 1.0], [1.0, 1.0])
    assert equal(combine(g_dm, g_dt, 1.0, "projection", "layer_flat")[0], [1.0, 1.0], [1.0, 1.0])
    assert equal(project(tensors([-1.0, 1.0], [3.0, -1.0]), g_dm, "flat", 1.0), [0.0, 1.0], [3.0, 0.0])
    g_dt = tensors([-2.0, 1.0], [1.0, 0.0])
    assert equal(project(g_dt, g_dm, "flat", 1.0), [-1.0, 1.0], [1.0, 1.0])
    assert equal(project(g_dt, g_dm, "layer_flat", 1.0), [0.0, 1.0], [1.0, 0.0])
    g, off = tensors([[1.0, 2.0], [3.0, 4.0]]), tensors([[1.0, 0.0], [0.0, 0.0]])
    assert equal(project(g, off, "layer_flat", 1.0), [[0.0, 2.0], [3.0, 4.0]])
    assert equal(project(g, off, "layer_svd", 1.0), [[0.0, 2.0], [0.0, 4.0]]), "the direction leaves every row"


def test_the_arguments_are_not_modified() -> None:
    g_dm, g_dt = tensors([1.0, 0.0], [[1.0, 2.0]]), tensors([-1.0, 1.0], [[-3.0, 0.0]])
    kept = [x.clone() for x in (*g_dm, *g_dt)]
    for mode in MODES:
        for reading in READINGS:
            combine(g_dm, g_dt, 3.0, mode, reading, "layer")
    for x, y in zip((*g_dm, *g_dt), kept, strict=True):
        assert torch.equal(x, y)


def test_float32_of_real_size_is_orthogonal_to_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    g, off = ([torch.randn(256, 256, generator=generator), torch.randn(256, generator=generator)] for _ in range(2))
    assert abs(float(cosine(project_flat(g, off), off))) < 1e-6


def test_flat_is_flat_within_each_layer_under_a_test_per_layer() -> None:
    """Layers (1) and (1) against (-1) and (3): the first conflicts, and a projection of the whole would give -2."""
    found, share = combine(tensors([1.0], [1.0]), tensors([-1.0], [3.0]), 1.0, "projection", "flat", "layer")
    assert equal(found, [1.0], [4.0])
    assert share == 0.5


@pytest.mark.parametrize(("value", "left"), [(5.0, [[0.0, 2.0], [0.0, 4.0]]), (4.0, [[0.0, 0.0], [0.0, 0.0]])])
def test_what_holds_95_percent_of_the_energy_is_removed_by_default(value: float, left: list) -> None:
    """Beside a singular value of 1, one of 5 holds 0.96 of the energy, one of 4 holds 0.94."""
    g, off = tensors([[1.0, 2.0], [3.0, 4.0]], [[value, 0.0], [0.0, 1.0]])
    assert equal([project_rows(g, off)], left)
    update, share = combine([-off], [g], 1.0, reading="layer_svd")
    assert equal(update, (torch.tensor(left).double() - off).tolist())
    assert share == 1.0


def test_only_as_many_directions_are_removed_as_the_energy_requires() -> None:
    """Two equal singular values: either direction holds exactly half of the energy."""
    g, off = tensors([[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]])
    assert torch.linalg.matrix_rank(g - project_rows(g, off, 0.5)) == 1


def test_tiny_gradients_have_a_direction() -> None:
    g, off = tensors([3e-9, 4e-9]), tensors([1e-9, 0.0])
    torch.testing.assert_close(project_flat(g, off)[0], tensors([0.0, 4e-9])[0], atol=1e-20, rtol=0)
    assert float(cosine(g, off)) == pytest.approx(0.6)


def test_gradients_of_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        inner(tensors([1.0], [2.0]), tensors([1.0]))
