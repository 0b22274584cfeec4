"""The logits among what a network returns: a tensor, or any structure that holds one; and the
memory format in which they are evaluated fastest."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor, nn

from data.errors import UserError

LAYOUTS = (torch.contiguous_format, torch.channels_last)
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


class FastLogits:
    """Evaluates a network, in evaluation mode: images -> logits. On a CPU, whose convolutions (and
    depthwise ones above all) like it, the images' channels come last in memory, unless the code of
    the network counts on their coming first: it is tried on two images."""

    def __init__(self, network: nn.Module, classes: int | None) -> None:
        self.network, self.classes, self.layout = network, classes, None

    def __call__(self, images: Tensor) -> Tensor:
        self.layout = self.layout or self._fastest(images[:2])
        try:
            return self._logits(images, self.layout)
        except RuntimeError:  # more images may be viewed otherwise than two
            if self.layout == torch.contiguous_format:
                raise
            self.layout = torch.contiguous_format
            return self._logits(images, self.layout)

    def _logits(self, images: Tensor, layout: torch.memory_format) -> Tensor:
        output = self.network(images.contiguous(memory_format=layout))
        return logits_of(output, len(images), self.classes)

    def _fastest(self, images: Tensor) -> torch.memory_format:
        if images.device.type == "cpu":
            with suppress(RuntimeError):  # such as of `view`; strides may also be misread silently
                plain, fast = (self._logits(images, form).float() for form in LAYOUTS)
                if bool((plain - fast).abs().max() <= 0.01 * plain.abs().max()):
                    return torch.channels_last
        return torch.contiguous_format
