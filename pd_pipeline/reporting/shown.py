"""What the report shows.

Apart from its stage, since parameters are checked by commands that draw nothing.
"""

from pydantic import Field

from pd_pipeline.config import Parameters


class Params(Parameters):
    """What the page shows."""

    rollouts: bool = Field(default=True, description="take recorded actions again in the simulator and draw them")
