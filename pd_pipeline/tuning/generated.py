"""The result of a method that tunes a generator of prompts: its prompts, and the generator."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field

from pd_pipeline.config import Parameters
from pd_pipeline.models.diffuser import Denoiser
from pd_pipeline.models.weights import load_weights, weights
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.storage import read_model, save_arrays, write_json
from pd_pipeline.tuning.adaptation import Prompted
from pd_pipeline.tuning.protocol import Pretrained


class _Chain(Parameters):
    """`generator.json`: how prompts are drawn from the saved denoisers."""

    chain: int = Field(gt=0)
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Generated(Prompted):
    """Prompts of a tuned generator, and its denoisers by name, of which the last one made the prompts."""

    denoisers: Mapping[str, Denoiser]
    chain: int
    """Steps of the reverse chain that the prompts come from."""

    def save(self, directory: Path) -> None:
        """Write `prompts.safetensors`, `generator.json` and one file per denoiser."""
        super().save(directory)
        for name, denoiser in self.denoisers.items():
            save_arrays(directory / f"{name}.safetensors", weights(denoiser))
        chain = _Chain(chain=self.chain, names=tuple(self.denoisers))
        write_json(directory / "generator.json", chain.model_dump(mode="json"))

    @classmethod
    def load(cls, directory: Path, plm: Pretrained) -> Self:
        """Load what `save` wrote. Raises PipelineError where it is missing or broken."""
        assert plm.diffuser is not None, "the denoisers have the shape of the pre-trained diffuser"
        saved = read_model(directory / "generator.json", _Chain)
        denoisers = {}
        for name in saved.names:
            denoisers[name] = Denoiser(plm.diffuser[0].config)
            load_weights(denoisers[name], directory / f"{name}.safetensors", "the diffuser's configuration")
            denoisers[name].to(plm.device).eval()
        prompts = Prompts.load(directory / "prompts.safetensors", plm.normalization)
        return cls(prompts=prompts, denoisers=denoisers, chain=saved.chain)

    def generators(self) -> Mapping[str, tuple[Denoiser, int]]:
        """Its denoisers."""
        return {name: (denoiser, self.chain) for name, denoiser in self.denoisers.items()}
