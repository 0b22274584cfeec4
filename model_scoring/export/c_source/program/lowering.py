"""A graph's calls become steps. What follows a convolution and is all that reads it (BatchNorm, a
bias, the residual's sum, an activation) becomes a part of it."""

from collections.abc import Callable, Mapping

import numpy as np

from data.errors import UserError
from model_scoring.export.c_source.program import steps
from model_scoring.export.c_source.program.graph import Call, Graph, Ref
from model_scoring.export.c_source.program.steps import Affine, Program, Size, Value


class NoKernel(Exception):
    """An operation, or a form of one, that has no kernel."""


class Padded:
    """A value with zeros around it that a convolution takes as its own padding."""

    def __init__(self, value: Value, top: int, left: int, size: Size) -> None:
        self.value, self.top, self.left, self.size = value, top, left, size


class Lowering:
    """Goes through a graph's calls and keeps what each of them made."""

    def __init__(self, graph: Graph, shape: tuple[int, int, int]) -> None:
        channels, *size = shape
        image = Value(np.arange(channels, dtype=np.int64).reshape(1, channels), tuple(size))
        self.program, self.graph = Program(image), graph
        self.results: list[object] = []
        self.makers: dict[int, Affine] = {}  # call -> the step that may still take more
        self.samples: dict[tuple, Value] = {}
        self.dequantized: dict[tuple, Value] = {}

    @property
    def call(self) -> Call:
        """The one at work."""
        return self.graph.calls[len(self.results)]

    def run(self, rules: Mapping[str, Callable]) -> Program:
        """By one rule for each operation's name. Raises UserError that names an operation without a
        kernel."""
        for call in self.graph.calls:
            try:
                if call.name not in rules:
                    raise NoKernel
                self.results.append(rules[call.name](self, *call.args, **call.kwargs))
            except NoKernel as reason:
                detail = f" ({reason})" if str(reason) else ""
                raise UserError(
                    f"--c-source: there is no kernel for {call.name}{detail}: use --onnx"
                ) from None
        self.program.logits = self.value(self.graph.logits)
        return self.program

    # values

    def value(self, ref: object) -> Value:
        """What a call made, in memory of the arena."""
        if not isinstance(ref, Ref):
            raise NoKernel("of constants")
        if ref.call < 0:
            return self.sample(self.program.image, self.program.image.size)
        found = self.results[ref.call]
        if isinstance(found, Padded):
            start = (-found.top, -found.left)
            found = self.results[ref.call] = self.sample(found.value, found.size, start=start)
        if not isinstance(found, Value):
            raise NoKernel("of several values")
        return self.floats(found)

    def source(self, ref: Ref) -> Value | Padded:
        """As `value`, for readers that take codes, a padded value, or the image itself."""
        if ref.call < 0:
            return self.program.image
        return self.results[ref.call]

    def floats(self, value: Value) -> Value:
        """What codes stand for, made once."""
        if value.codes is None:
            return value
        key = value.planes.tobytes(), value.planes.shape
        if key not in self.dequantized:
            out = self.program.new(value.planes.shape, value.size)
            self.program.steps.append(steps.Dequantize(out=out, x=value))
            self.dequantized[key] = out
        return self.dequantized[key]

    def open(self, ref: object) -> Affine | None:
        """The step that made a value, if nothing else reads it."""
        if isinstance(ref, Ref) and ref.call >= 0 and self.graph.calls[ref.call].users == 1:
            return self.makers.get(ref.call)
        return None

    def add(self, step: steps.Step) -> Value:
        """A new step, the last one."""
        self.program.steps.append(step)
        return self.remember(step)

    def remember(self, step: steps.Step) -> Value:
        """The call at work is a part of this step."""
        if isinstance(step, Affine):
            self.makers[len(self.results)] = step
        return step.out

    def sample(self, x: Value, size: Size, step: Size = (1, 1), start: Size = (0, 0),
               outside: float = 0.0) -> Value:  # fmt: skip
        """Pixels of a value, made once."""
        key = x.planes.tobytes(), x.planes.shape, x.size, size, step, start, outside
        if key not in self.samples:
            out = self.program.new(x.planes.shape, size, x.codes)
            made = steps.Sample(out=out, x=x, step=step, start=start, outside=outside)
            self.program.steps.append(made)
            self.samples[key] = out
        return self.samples[key]

    def mapped(self, ref: object) -> steps.Map:
        """A step on what a call made, yet to be filled in."""
        x = self.value(ref)
        count = x.planes.size
        out = self.program.new(x.planes.shape, x.size)
        made = steps.Map(out=out, x=x, scale=np.ones(count), shift=np.zeros(count))
        self.add(made)
        return made

    def rank(self, ref: Ref) -> int:
        """Dimensions of what a call made."""
        return len(self.graph.calls[ref.call].shape) if ref.call >= 0 else 4


def store_at_once(program: Program) -> Program:
    """Let a convolution store what maps make of it as well: BatchNorm before the next one, codes;
    and not itself, if nothing else reads it."""
    makers = {id(s.out): s for s in program.steps if isinstance(s, steps.Convolution)}
    for step in list(program.steps):
        maker = makers.get(id(step.x)) if isinstance(step, steps.Map) and step.add is None else None
        if maker is not None:
            maker.also.append(step)
            program.steps.remove(step)
    read = [value.planes.flat for step in program.steps for value in step.reads()]
    read = np.concatenate([*read, program.logits.planes.flat])
    for maker in makers.values():
        maker.stored = not maker.also or bool(np.isin(maker.out.planes, read).any())
    return program
