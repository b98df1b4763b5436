"""`lineage.json` in a policy folder: every piece of work that the policy comes from, back to raw trajectories.

It is written with the policy (`gathering.gather`) and covered by the digests in `policy.json`, so it describes the
policy as it was made, whatever the project holds today, and goes with the folder to another machine.
"""

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from pd_pipeline.config import Name, Parameters
from pd_pipeline.deployment.folder import LINEAGE, Description
from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import file_digest, read_json, read_model
from pd_pipeline.trajectories.schema import Origin

FORMAT: Final = 1


class Source(Parameters):
    """Where raw trajectories of one quality come from."""

    kind: Literal["collected", "imported", "file", "accepted"] = Field(
        description="`collected` by a behaviour policy; `imported` by `pd-pipeline import`; a `file` in the format of "
        "this pipeline, for a family without a simulator; or `accepted` from data/incoming/ by `pd-pipeline ingest`"
    )
    quality: Name = Field(description="of these trajectories")
    file: str | None = Field(
        description="the raw file, relative to the project; null: not here any more when the policy was written"
    )
    digest: str | None = Field(description="SHA-256 of the raw file")
    time: str | None = Field(
        default=None, description="UTC time when a file was accepted, or else when the raw file was last written"
    )
    origin: tuple[Origin, ...] = Field(
        default=(), description="what an import was made from: source, format, dataset, digest, options, versions"
    )
    dropped: str | None = Field(default=None, description="where an accepted file was dropped")
    first_episode: int | None = Field(default=None, description="number of its first episode in `target_data`")
    episodes: int | None = Field(default=None, description="how many of its episodes are in `target_data`")
    seed: int | None = Field(default=None, description="seed of the collection")
    behavior: dict[str, Any] | None = Field(default=None, description="the behaviour policy that collected")
    versions: dict[str, str] = Field(default={}, description="package -> version that the collection ran with")


class Piece(Parameters):
    """One piece of work. What is not known is null."""

    name: str = Field(description="its address in DVC, such as `plm@reach-0`")
    stage: str = Field(description="name of its stage")
    key: str = Field(description="its key: family, task and seed, as far as the stage has them")
    out: str = Field(description="path of its out, relative to the project")
    digest: str | None = Field(description="SHA-256 of the out, as the report shows it")
    files: dict[str, str] = Field(description="file of the out -> SHA-256; empty: the out was not here")
    md5: str | None = Field(description="digest of the out in dvc.lock, by which DVC's cache and remotes know it")
    code: str | None = Field(description="digest of the code that made it, as in digests.json")
    version: str | None = Field(description="version of pd_pipeline that made it")
    revision: str | None = Field(
        description="git revision of the project when it was made, and whether code or parameters differed from it"
    )
    committed: str | None = Field(
        default=None, description="where `revision` is null: the first commit whose dvc.lock names the out"
    )
    parameters: dict[str, Any] | None = Field(description="of the stage, with defaults filled in")
    changed: dict[str, Any] = Field(description="those that differ from the defaults of the code, as flat names")
    environment: dict[str, Any] | None = Field(description="parameters of the family, with defaults filled in")
    environment_changed: dict[str, Any] = Field(description="those that differ from the defaults, as flat names")
    device: str | None = Field(description="what it was computed on")
    precision: str | None = Field(description="of the computation")
    needs: tuple[str, ...] = Field(description="names of the pieces that it was made from")
    replaced: dict[str, str | None] = Field(
        description="name of a piece that it was made from, but whose out was another one when the policy was written "
        "-> digest of the out that it was made from"
    )
    sources: tuple[Source, ...] = Field(description="the raw trajectories that it was made from, beside `needs`")


class Ancestry(Parameters):
    """`lineage.json`."""

    format: Literal[1] = Field(default=FORMAT, description="version of this format")
    revision: str = Field(description="git revision of the project when the policy was written")
    tuned_on: dict[Name, tuple[int, ...]] = Field(
        description="quality -> numbers of the few-shot episodes in `target_data`"
    )
    pieces: tuple[Piece, ...] = Field(min_length=1, description="the tuned adaptation, then all that it comes from")


def read_ancestry(folder: Path, description: Description) -> Ancestry:
    """Read lineage.json of a policy folder. Raises PipelineError if it is missing or not the one that was written."""
    path = folder / LINEAGE
    if LINEAGE not in description.files:
        raise PipelineError(f"{path}: the policy was written without it: write the policy again")
    if not path.is_file():
        raise PipelineError(f"{path}: no such file: copy the whole policy folder again")
    if file_digest(path).hex() != description.files[LINEAGE]:
        raise PipelineError(f"{path}: damaged: not the file that was written: copy the whole policy folder again")
    if (found := read_json(path).get("format")) != FORMAT:
        raise PipelineError(f"{path}: format version {found}, but this version of pd_pipeline reads {FORMAT}")
    return read_model(path, Ancestry, ": copy the whole policy folder again")
