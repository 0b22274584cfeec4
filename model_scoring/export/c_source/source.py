"""The C file and its header."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from data.errors import UserError
from model_scoring.export.c_source.arena import Layout, plan
from model_scoring.export.c_source.constants import Constants
from model_scoring.export.c_source.grids import ALIGNMENT
from model_scoring.export.c_source.kernels import Kernels
from model_scoring.export.c_source.program import Convolution, Linear, Program, lower

TEMPLATES = Path(__file__).parent / "templates"
ALWAYS = ("vectors", "bytes", "planes")


@dataclass(frozen=True)
class Description:
    """What a file says of its network beside the numbers."""

    lines: tuple[str, ...]  # of the comment on top
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()  # of images in [0, 1]
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class CSource:
    """A network in C: `source` stands alone, `header` is for its callers."""

    name: str  # prefix of its functions
    source: str
    header: str
    shape: tuple[int, int, int]
    classes: int
    arena_bytes: int
    weight_bytes: int  # of all constant arrays


def _renamed(text: str, name: str) -> str:
    text = re.sub(r"\bNAME_", f"{name.upper()}_", text)
    return re.sub(r"\bname_", f"{name}_", text)


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text()


def quoted(text: str) -> str:
    """A C string literal of UTF-8; octal escapes always have three digits, question marks can make
    no trigraph."""
    plain = {*range(32, 127)} - {*b'"\\?'}
    content = text.encode("utf-8", "surrogateescape")
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in content) + '"'


def comment(lines: tuple[str, ...]) -> str:
    """A comment that nothing in these lines ends or continues."""
    text = "\n".join(re.sub(r"[^ -~]", "?", line) for line in lines)
    text = re.sub(r"(?<=[*/?])(?=[*/?])", " ", text)
    return "/* " + text.replace("\n", "\n   ").replace("\n   \n", "\n\n") + " */\n"


def _header(source_name: str, shape: tuple[int, int, int], classes: int, layout: Layout) -> str:
    sizes = dict(zip(("CHANNELS", "HEIGHT", "WIDTH"), shape, strict=True))
    sizes |= {"CLASSES": classes, "ARENA_BYTES": 4 * (layout.floats + ALIGNMENT)}
    lines = "\n".join(f"#define NAME_{key} {value}" for key, value in sizes.items())
    return _renamed(_template("header.h").replace("@SIZES@", lines), source_name)


def _tables(description: Description, channels: int, classes: int) -> str:
    names = description.class_names or tuple(map(str, range(classes)))
    mean, std = description.mean or (0.0,) * channels, description.std or (1.0,) * channels
    listed = ",\n    ".join(quoted(str(name)) for name in names)
    numbers = {"mean": mean, "std": std}
    lines = [f"const char *const name_class_names[NAME_CLASSES] = {{\n    {listed}}};"]
    for key, values in numbers.items():
        text = ", ".join(f"{float(np.float32(v))!r}f" for v in values)
        lines.append(f"const float name_{key}[NAME_CHANNELS] = {{{text}}};")
    return "\n".join(lines) + "\n"


def _functions(kernels: Kernels, logits: np.ndarray) -> str:
    calls = "\n    ".join(kernels.calls)
    where = kernels.constants.planes(logits)
    return _template("run.c").replace("@CALLS@", calls).replace("@LOGITS@", where)


def _require(program: Program, description: Description) -> int:
    """The number of classes."""
    logits, classes = program.logits, len(description.class_names)
    count = logits.planes.size
    if logits.size != (1, 1) or (classes and classes != count):
        raise UserError(
            f"--c-source: the network gives {logits.planes.shape} values of {logits.size}, not one "
            f"for each class"
        )
    return count


def c_source(
    network: nn.Module, shape: tuple[int, int, int], *, name: str, description: Description
) -> CSource:
    """A network in evaluation mode on the CPU as C, for one image (channels, height, width) at a
    time. `name` is a C identifier. Raises UserError where an operation has no kernel, or the arena
    would take more than 1 GiB."""
    program = lower(network, shape, len(description.class_names) or None)
    classes = _require(program, description)
    layout, constants = plan(program), Constants()
    kernels = Kernels(layout, constants, shape[0])
    for step in program.steps:
        kernels.write(step)
    functions = _functions(kernels, layout.of(program.logits))
    header = _header(name, shape, classes, layout)
    shared = ("convolution",) if {"lists", "dense", "integers"} & kernels.used.keys() else ()
    templates = (*ALWAYS, *shared, *kernels.used)
    text = "\n".join(
        [
            comment((*description.lines, *_facts(program, layout, constants, name))),
            _template("top.c"),
            header,
            *(_renamed(_template(f"{part}.c"), name) for part in templates),
            *constants.text,
            *kernels.text,
            _renamed(_tables(description, shape[0], classes), name),
            _renamed(functions, name),
            _renamed(_template("main.c"), name),
        ]
    )
    arena = 4 * (layout.floats + ALIGNMENT)
    return CSource(name, text, header, shape, classes, arena, constants.bytes)


def _facts(program: Program, layout: Layout, constants: Constants, name: str) -> tuple[str, ...]:
    layers = [s for s in program.steps if isinstance(s, Convolution | Linear)]
    nonzeros = sum(int(np.count_nonzero(s.weight)) for s in layers)
    total = sum(s.weight.size for s in layers)
    upper = name.upper()
    return (
        f"{len(layers)} layers, {total:,} weights, {nonzeros:,} of them not zero; "
        f"{constants.bytes:,} bytes of constants, {4 * (layout.floats + ALIGNMENT):,} of arena.",
        "",
        "A library:  cc -O3 -march=native -c FILE.c",
        f"A program:  cc -O3 -march=native -D{upper}_MAIN FILE.c -o FILE -lm",
        "It reads images (channels, height, width) of float32 from its input, and prints logits.",
        f"Without -march=native vectors are short. -D{upper}_VECTOR=n: of n floats, "
        f"-D{upper}_SCALAR: none.",
    )
