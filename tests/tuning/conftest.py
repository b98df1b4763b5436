import pytest

from pd_pipeline.tuning.protocol import Pretrained, Target
from tests.tuning.tiny import few_shot_of, pretrained


@pytest.fixture
def plm() -> Pretrained:
    return pretrained()


@pytest.fixture
def few_shot(plm: Pretrained) -> Target:
    return few_shot_of(plm)
