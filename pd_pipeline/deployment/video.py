"""Episodes as a video file: MP4 with ffmpeg, or GIF."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pd_pipeline.deployment.folder import Description
from pd_pipeline.deployment.rollout import environment_block, starts
from pd_pipeline.errors import PipelineError
from pd_pipeline.reporting.replay import captioned, replay
from pd_pipeline.reporting.rollouts import Episode
from pd_pipeline.storage import atomic_file

FRAMES_PER_SECOND = 20
MAX_FRAMES = 500  # of an episode: longer ones are drawn at evenly spaced steps


def check_format(path: Path) -> None:
    """Raise PipelineError unless a file of this name can be written here."""
    if path.suffix not in (".mp4", ".gif"):
        raise PipelineError(f"{path}: unknown kind of video: name a file that ends in .mp4 or .gif")
    if path.is_dir():
        raise PipelineError(f"{path}: is a folder: name a file")
    if path.suffix == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError:
            raise PipelineError(
                f"{path}: MP4 needs the package imageio-ffmpeg: pip install 'pd-pipeline[video]', or name a .gif file"
            ) from None


def film(about: Description, episodes: Sequence[Episode], root: Path, path: Path) -> None:
    """Draw the episodes of a policy, one after another, and write them to `path`. Raises PipelineError.

    They are taken again in a process of their own, as for the report.
    """
    check_format(path)
    block, images = environment_block(about, root), []
    for episode, start in zip(episodes, starts(about, len(episodes)), strict=True):
        with tempfile.TemporaryDirectory() as work:
            made = replay([episode], about.family, block, root, Path(work), [start], MAX_FRAMES)
        if made.missing:
            raise PipelineError(f"family '{about.family}': {made.missing}")
        images += captioned(made, 0)
    write_video(path, images)


def write_video(path: Path, images: Sequence[Image.Image]) -> None:
    """Write images of equal size as MP4 or GIF, by the name of the file."""
    with atomic_file(path) as temporary:
        if path.suffix == ".gif":
            rest = {"append_images": images[1:], "duration": 1000 // FRAMES_PER_SECOND, "loop": 0}
            images[0].save(temporary, "GIF", save_all=True, **rest)
        else:
            _write_mp4(temporary, images)


def _write_mp4(path: Path, images: Sequence[Image.Image]) -> None:
    import imageio_ffmpeg

    width, height = (2 * (length // 2) for length in images[0].size)  # H.264 needs even sizes
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=FRAMES_PER_SECOND, macro_block_size=2, output_params=["-f", "mp4"]
    )
    try:
        writer.send(None)  # starts it
        for image in images:
            writer.send(np.ascontiguousarray(image.crop((0, 0, width, height))))
    finally:
        writer.close()
