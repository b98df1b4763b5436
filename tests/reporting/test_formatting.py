"""Numbers as people read them."""

import pytest

from pd_pipeline.evaluation.results import Difference, Share
from pd_pipeline.evaluation.statistics import Estimate, Position
from pd_pipeline.reporting.formatting import decimals, interval, number, percent

MINUS = "\N{MINUS SIGN}"


def test_numbers_as_people_read_them() -> None:
    assert number(-1234.56, 1) == "\N{MINUS SIGN}1,234.6"
    assert number(-0.04, 1) == "0.0"
    assert percent(0.9849) == "98.5 %"
    assert [decimals([value]) for value in (2000, -150, 3, 0.5)] == [1, 1, 2, 3]
    assert decimals([0.0]) == decimals([]) == 3
    assert [number(value, decimals([value])) for value in (0.03141, -3.1e-5)] == ["0.0314", f"{MINUS}0.0000310"]


@pytest.mark.parametrize(
    "found",
    [
        Estimate(3.6, -2.9, 4.3),
        Position(3.6, -2.9, 4.3),
        Difference(3.6, -2.9, 4.3, "prompt_dt"),
        Share(3.6, -2.9, 4.3, "prompt_dt", "full_finetune"),
    ],
)
def test_a_value_has_its_interval_beside_it(found: Estimate | Position | Difference | Share) -> None:
    assert interval(found, 1) == f"3.6 ({MINUS}2.9 to 4.3)"
    assert interval(found, 1, -1) == f"{MINUS}3.6 ({MINUS}4.3 to 2.9)", "the opposite, from low to high"


def test_an_unknown_interval_is_called_so() -> None:
    assert interval(Position(0.25), 2) == "0.25 (no interval)"
