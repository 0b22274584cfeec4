"""What a page is about, gathered from a score, its checkpoint and the command line."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_compound_scaling.checkpoints import Checkpoint
from model_scoring.counting import Score


@dataclass(frozen=True)
class Subject:
    """The scored network and what is known of it."""

    question: str
    model: str
    score: Score
    top1: float | None  # percent; None: not known
    images: str  # that it was measured on, and how
    figures: dict  # the numbers of the epoch that its file is of; empty: it does not say
    files: dict[str, tuple[Path, int]]  # form -> file, bytes; the first is the checkpoint
    latency: dict  # what --latency found; empty: it was not asked for
    start: dict  # of the command that makes the page, as in environment.json
    seed: int


@dataclass(frozen=True)
class Asked:
    """What the command line says of the page."""

    question: str | None
    dataset: str | None
    other_images: bool  # than the checkpoint's figures were measured on
    pruned: bool  # the network is no longer that of the file
    forms: dict[str, Path]  # form of the network -> file that is written
    seed: int


def recorded_figures(checkpoint: Checkpoint) -> dict[str, float]:
    """The numbers of the epoch that a checkpoint is of; none if it does not say."""
    figures = checkpoint.content.get("figures")
    figures = figures if isinstance(figures, dict) else {}
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def gather(
    asked: Asked,
    result: Score,
    checkpoint: Checkpoint,
    content: dict,
    measured: tuple[float | None, str],
    files: Mapping[Path, bytes],
) -> Subject:
    """The subject of a page: `content` is what --json writes, `measured` top-1 in percent and on
    which images, `files` what is written."""
    sizes = {"checkpoint": (checkpoint.path, checkpoint.path.stat().st_size)}
    sizes |= {form: (path, len(files[path])) for form, path in asked.forms.items()}
    data = asked.dataset or checkpoint.data.get("dataset", "unknown images")
    figures = {} if asked.pruned else recorded_figures(checkpoint)
    if not asked.other_images and "val_top1" in figures:
        measured = figures["val_top1"], f"validation images of {data}, measured in training"
    question = asked.question or f"{content['model']} on {data}"
    return Subject(question, content["model"], result, *measured, figures, sizes,
                   content.get("latency", {}), content["environment"], asked.seed)  # fmt: skip
