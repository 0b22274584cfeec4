"""The logits among what a network returns: a tensor, or any structure that holds one."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor, nn

from data.errors import UserError

FIRST = ("logits", "out")  # what networks of several outputs call the one that counts


def _named(output: object) -> Mapping[str, object]:
    """Parts of a structure that has names for them."""
    if isinstance(output, Mapping):
        return output
    if hasattr(output, "_asdict"):  # a named tuple
        return output._asdict()
    if is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    attributes = getattr(output, "__dict__", {})
    return {name: part for name, part in attributes.items() if isinstance(part, Tensor)}


def tensors(output: object) -> Iterator[Tensor]:
    """All tensors of a structure, nested or not, in their order, but those named in FIRST first."""
    if isinstance(output, Tensor):
        yield output
        return
    parts = _named(output)
    parts = [parts[name] for name in sorted(parts, key=lambda name: name not in FIRST)]
    for part in parts or (output if isinstance(output, list | tuple) else ()):
        yield from tensors(part)


def logits_of(output: object, images: int, classes: int | None = None) -> Tensor:
    """The first tensor of shape (images, classes), any number of classes if None; else the first
    that has it but for further dimensions of 1. UserError if there is none."""
    found = list(tensors(output))
    for tensor in found:
        if tensor.dim() == 2 and tensor.shape[0] == images and classes in (None, tensor.shape[1]):
            return tensor
    sizes = [n for n in (images, classes) if n != 1]
    for tensor in found:
        if tensor.dim() > 2 and [n for n in tensor.shape if n != 1] == sizes:
            return tensor.reshape(-1, classes)
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in found) or "no tensor"
    many = "any number of" if classes is None else classes
    raise UserError(f"the network maps a batch of {images} to {shapes}, not to {many} classes")


class Logits(nn.Module):
    """A network that returns its logits alone: nothing else of it seems to need a gradient."""

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.network(images), images.shape[0], self.classes)
