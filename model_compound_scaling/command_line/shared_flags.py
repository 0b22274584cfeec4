"""The flags that several of the three command lines share, a row each: see `parser.flag`."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from data.datasets import AUGMENT, DATASETS, NORMALIZE
from model_compound_scaling.command_line import flag_values as kind
from model_compound_scaling.command_line.parser import ON_OFF, SWITCH, Parser
from model_compound_scaling.networks.efficientnet_keys import ORIGINS
from model_compound_scaling.networks.registry import REGISTRY

BUILDER = "torchvision:NAME, or module:function (a builder that takes num_classes)"
MODELS = f"one of {', '.join(REGISTRY)}, {BUILDER}"


# fmt: off
def add_recipe_flags(
    add: Callable[..., None], *, schedules: Iterable[str], amp: Iterable[str],
    schedule: str | None, default: str = "",
) -> None:
    """`add`: to which section; `schedules`, `amp`: what there is to choose from. `default` says in
    words what a `schedule` of None means."""
    add("--schedule", tuple(schedules), schedule, None, "learning rate of a phase of training: as "
        "it is, cosine to 0, or divided by 10 every 30 epochs" + default)
    add("--warmup-epochs", kind.natural, 0, "N",
        "first epochs of a phase, in which the learning rate rises to --lr")
    add("--label-smoothing", kind.decay, 0.0, "X",
        "share of each label that goes to all classes alike")
    add("--mixup", kind.non_negative, 0.0, "ALPHA",
        "mix pairs of images with shares from Beta(ALPHA, ALPHA); 0: off")
    add("--cutmix", kind.non_negative, 0.0, "ALPHA",
        "paste a part of one another with shares from Beta(ALPHA, ALPHA); 0: off")
    add("--amp", tuple(amp), "off", None, "mixed precision; fp16 with a scaled loss")
    add("--channels-last", SWITCH, False, None, "the memory format that tensor cores like")
    add("--compile", SWITCH, False, None, "compile the network with torch.compile")


def add_data_flags(parser: Parser, *, training: bool, default: str) -> None:
    """`default` says in words which data set is taken without --dataset."""
    add = parser.section("data")
    add("--dataset", None, None, "NAME", f"one of {', '.join(DATASETS)} (default: {default})")
    add("--data-path", kind.folder, None, "DIR", "folder of the data set (default: data/downloads, "
        "where CIFAR and MNIST are downloaded to)", incidental=True)
    add("--ignore-class-names", SWITCH, False, None, "number the classes in the data set's "
        "own order, although the checkpoint's have other names", incidental=True)
    add("--image-size", kind.positive, None, "S", "height and width of the input (default: that of "
        "a checkpoint, else what a network of the table is for; of other networks the data set's, "
        "else 224)")
    add("--normalize", NORMALIZE, None, None,
        "mean and deviation of the input (default: that of a checkpoint, else the data set's)")
    if training:
        add("--augment", AUGMENT, "default", None,
            "training images: the data set's usual recipe, only flip and crop, or as they are")
        add("--batch-size", kind.positive, 256, "N",
            "training images a step, of all processes together")
        add("--holdout", kind.percent, None, "P", "P percent of each class' training images "
            "decide and are not trained on; the validation images are only reported, once for each "
            "network (default: what the checkpoint records, else 0: the validation images decide)")
    add("--val-batch-size", kind.positive, None, "N", "images at once when evaluating "
        "(default: as many as their size and the device suggest, up to 512)", incidental=True)
    add("--workers", kind.natural, None, "N",
        "processes that read images from disk; small data sets stay in memory (default: the cores "
        "that this process may use, at most 4)", incidental=True)
    add("--cache-gb", kind.non_negative, 4.0, "X",
        "folders of small images (up to 64 pixels) are held in memory, and augmented on the "
        "device, up to X 10^9 bytes; larger ones are read from disk in each epoch", incidental=True)
    add("--skip-bad-images", kind.natural, 0, "N", "leave out, and name, up to N image files that "
        "cannot be read, instead of stopping", incidental=True)


def add_machine_flags(parser: Parser, *, training: bool) -> None:
    """Where it runs, and the seed."""
    add = parser.section("machine")
    if training:
        add("--deterministic", SWITCH, False, None, "only algorithms that give the same bits in "
            "every run on a GPU of the same kind; slower there")
    add("--cuda", ON_OFF, None, None,
        "compute on the GPU (default: if there is one)", incidental=True)
    add("--seed", kind.natural, 0, "N",
        "of initialisation, order of the images, augmentation and dropout")


def add_network_flags(parser: Parser) -> None:
    """What network a checkpoint holds."""
    add = parser.section("network, if the checkpoint does not describe it")
    add("--model", None, None, "NAME",
        f"{MODELS} (default: what the checkpoint says or its tensors show)")
    add("--dw-multps", kind.multiplier, None, ("D", "W"),
        "depth and width multiplier of a MicroNet (default: read off the tensors)", nargs=2)
    add("--phi", kind.exponent, 3.5, "PHI",
        "exponent of both multipliers; takes effect with --dw-multps", incidental=True)
    add("--weights-origin", ("auto", *ORIGINS), "auto", None,
        "where EfficientNet weights were trained: decides BatchNorm eps and padding; tf also for "
        "lukemelas' and timm's tf_ models; auto goes by the names of the tensors")


def add_run_flags(parser: Parser, *, output: Path) -> None:
    """Where a run's files go, and what happens to an earlier run there."""
    add = parser.section("run")
    add("--output --slurm-save", Path, output, "DIR",
        "folder of the results; each network of a grid has its own below", incidental=True)
    add("--resume", None, "auto", "auto|PATH|none",
        "auto continues the same run in the same folder, PATH begins with another run's last.pt "
        "(and later continues what that began), none starts over", incidental=True)
    add("--resume-override", SWITCH, False, None,
        "continue although the configuration is another", incidental=True)
    add("--checkpoint-every", kind.interval, "15min", "INTERVAL", "save within epochs, too, as "
        "often as this: minutes as in 15min, or 500steps", incidental=True)
    add("--no-resume", "store_const", argparse.SUPPRESS, None,
        "same as --resume none; an earlier run in the folder is kept under another name",
        dest="resume", const="none", incidental=True)
# fmt: on
