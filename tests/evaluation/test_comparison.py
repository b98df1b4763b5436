"""Methods compared with one: each figure against its definition or another implementation."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, ttest_rel

from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.comparison import (
    ALL,
    compared,
    holm,
    improvement,
    normalised,
    over_families,
    p_value,
    profile,
)
from pd_pipeline.evaluation.statistics import Scores, interquartile_mean


def drawn(seeds: int, targets: int, shift: float = 0.0, runs: int = 8, number: int = 0) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(number)
    return [[rng.normal(10 * task + shift, 1, runs) for task in range(targets)] for _ in range(seeds)]


RNG = np.random.default_rng(0)


def test_every_target_has_its_own_scale() -> None:
    runs: dict[str, Scores] = {
        "low": [[np.array([0.0, 2]), np.array([10.0, 10])], [np.array([1.0, 1]), np.array([10.0, 10])]],
        "high": [[np.array([5.0]), np.array([30.0])], [np.array([5.0]), np.array([30.0])]],
        "mine": [[np.array([3.0]), np.array([40.0])], [np.array([1.0]), np.array([20.0])]],
    }
    found = normalised(runs, "low", "high", "f")["mine"]
    assert [[list(r) for r in seed] for seed in found] == [[[0.5], [1.5]], [[0.0], [0.5]]]


def test_without_a_scale_it_says_which_target() -> None:
    runs: dict[str, Scores] = {
        "low": [[np.array([0.0]), np.array([3.0])]],
        "high": [[np.array([1.0]), np.array([3.0])]],
    }
    with pytest.raises(PipelineError, match=r"f: high is not above low on target number 1, .*3 and 3.*--ceiling"):
        normalised(runs, "low", "high", "f")


def test_probability_of_improvement_is_that_of_mann_and_whitney() -> None:
    ours, theirs = drawn(3, 2, 0.5, number=1), drawn(3, 2, number=2)
    theirs[0][0][:3] = ours[0][0][:3]  # ties count half
    expected = [
        np.mean([mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(a, b, strict=True)])
        for a, b in zip(ours, theirs, strict=True)
    ]
    found = improvement(ours, theirs, RNG)
    assert found.value == pytest.approx(np.mean(expected))
    assert 0 <= found.low < found.value < found.high <= 1
    one = improvement(ours[:1], theirs[:1], RNG)
    assert one.value == pytest.approx(expected[0])
    assert one.low < one.value < one.high
    assert improvement(ours, ours, RNG).value == pytest.approx(0.5)


def test_p_is_that_of_the_paired_t_test_over_seeds() -> None:
    ours, theirs = drawn(5, 3, 0.3, number=1), drawn(5, 3, number=2)
    means = [[np.mean([r.mean() for r in seed]) for seed in scores] for scores in (ours, theirs)]
    assert p_value(ours, theirs) == pytest.approx(ttest_rel(*means).pvalue)
    assert p_value(ours, ours) == 1.0
    none: Scores = [[np.zeros(4)], [np.zeros(4)]]
    shifted = [[runs + 1 for runs in seed] for seed in none]
    assert p_value(shifted, none) == 1.0, "differences without any spread cannot be tested"


def test_one_seed_gives_no_verdict() -> None:
    """Copies of one prompt have no spread within a seed, and say nothing of another one."""
    runs: dict[str, Scores] = {"a": [[np.full(8, 2.0)]], "reference": [[np.full(8, 1.0)]]}
    found = {row.method: row for row in compared("f", runs, "reference")}
    assert (found["a"].p, found["a"].corrected, found["a"].verdict) == (None, None, "one seed")
    assert found["a"].difference is not None
    assert found["a"].difference.value == 1.0


def test_what_other_methods_are_there_changes_no_interval() -> None:
    runs: dict[str, Scores] = {name: drawn(1, 2, number=i) for i, name in enumerate(("reference", "a", "b"))}
    alone = {row.method: row for row in compared("f", {m: runs[m] for m in ("reference", "b")}, "reference")}
    beside = {row.method: row for row in compared("f", runs, "reference")}
    assert alone["b"] == beside["b"]


def test_p_of_equal_methods_is_evenly_spread() -> None:
    """The chance of a p below 0.2 is about 0.2: what a p value is."""
    rng = np.random.default_rng(3)
    found = [
        p_value(*([[rng.normal(0, 1, 6)] for _ in range(4)] for _ in range(2)))  # type: ignore[arg-type]
        for _ in range(2000)
    ]
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(found) < level) == pytest.approx(level, abs=0.04)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_order_and_never_lowers() -> None:
    p = np.random.default_rng(0).random(30)
    found = np.array(holm(p.tolist()))
    assert (found >= p).all()
    assert (np.diff(found[np.argsort(p)]) >= 0).all()
    assert found.min() == pytest.approx(min(1, 30 * p.min()))


def test_methods_against_a_reference() -> None:
    runs: dict[str, Scores] = {
        "same": drawn(5, 2, 0.0, number=1),
        "reference": drawn(5, 2, 0.0, number=2),
        "good": drawn(5, 2, 2.0, number=3),
        "bad": drawn(5, 2, -2.0, number=4),
    }
    rows = {row.method: row for row in compared("f", runs, "reference")}
    verdicts = {method: row.verdict for method, row in rows.items()}
    assert verdicts == {"good": "better", "same": "not different", "reference": "reference", "bad": "worse"}
    assert [row.iqm.value for row in rows.values()] == sorted((row.iqm.value for row in rows.values()), reverse=True)
    pooled = np.concatenate([r for seed in runs["good"] for r in seed])
    assert rows["good"].iqm.value == pytest.approx(float(interquartile_mean(pooled)))
    assert rows["good"].difference is not None
    assert rows["good"].difference.value == pytest.approx(2.0, abs=0.4)
    assert (rows["good"].seeds, rows["good"].targets, rows["good"].family) == (5, 2, "f")
    raw = {method: row.p for method, row in rows.items() if row.p is not None}
    assert [rows[m].corrected for m in raw] == pytest.approx(holm(list(raw.values())))
    assert rows["reference"].p is None


def test_over_families_all_targets_count_alike() -> None:
    families: dict[str, dict[str, Scores]] = {
        "a": {"x": drawn(2, 2, number=1), "only_here": drawn(2, 2, number=2)},
        "b": {"x": drawn(2, 3, number=3)},
    }
    found = over_families(families)
    assert list(found) == ["x"]
    assert [len(seed) for seed in found["x"]] == [5, 5]
    np.testing.assert_array_equal(found["x"][1][2], families["b"]["x"][1][0])
    families["b"] = {"x": drawn(3, 3)}
    with pytest.raises(PipelineError, match="different numbers of seeds, a has 2, b has 3: compare them one by one"):
        over_families(families)
    assert ALL == "all"


def test_profiles_fall_from_all_to_none() -> None:
    scores = drawn(4, 2)
    value, low, high = profile(scores, np.array([-100.0, 0.0, 10.0, 100.0]))
    assert (value[0], value[-1]) == (1.0, 0.0)
    assert (np.diff(value) <= 0).all()
    assert (low <= value).all()
    assert (value <= high).all()
    every = np.array([[np.mean(r > 0.0) for r in seed] for seed in scores])
    assert value[1] == pytest.approx(every.mean())
    one = profile(scores[:1], np.array([0.0]))
    assert one[0] == one[1] == one[2]
