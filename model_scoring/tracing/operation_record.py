"""What a forward pass leaves behind: records of its operations, and tags on its tensors."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from model_scoring.tracing.layer_weights import Weights

UNKNOWN = "unknown"
STORED = "stored"  # a parameter that only takes part in a copy


@dataclass(frozen=True)
class Record:
    """One operation of the forward pass. Shapes include the batch dimension of 1."""

    name: str
    kind: str  # as in operations.KINDS, or UNKNOWN or STORED
    operation: str  # PyTorch's name for it
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    inputs: tuple[int, ...]  # records whose results it uses; copies are seen through
    parameters: tuple[str, ...] = ()
    stored: int = 0  # values in those parameters, 0 if an earlier record has them
    weight: Tensor | None = None  # convolutions and linear layers: (c_out, c_in / groups, ...)
    weights: Weights | None = None  # the same, counted
    bias: bool = False
    # bool (c_in,): channels that are 0 for every image, or a constant that is the same at a border
    free_inputs: Tensor | None = None
    folded: bool = False  # such constants, times their weights, belong to the bias
    constants: Tensor | None = None  # (c_out,) see liveness; None: no channel is constant
    window: float = 1  # pooling: input elements per output element; matmul: length of the products

    @property
    def shared(self) -> bool:
        """Its weights are stored with an earlier record."""
        return bool(self.parameters) and self.stored == 0


@dataclass(frozen=True)
class Trace:
    """The forward pass of a network."""

    records: list[Record]
    outputs: frozenset[int]  # records whose results leave the network
    unused: tuple[str, ...]  # parameters the pass never touches

    @property
    def unknown(self) -> dict[str, int]:
        """Operations without a rule and how often they occur."""
        return dict(Counter(r.operation for r in self.records if r.kind == UNKNOWN))


@dataclass
class Tag:
    """What is known of a tensor during the pass."""

    from_image: bool = True  # False: made of parameters and constants only, so precomputed
    producers: frozenset[int] = frozenset()
    parameters: frozenset[str] = frozenset()
    value: Tensor | None = None  # numbers, if it does not depend on the image
    constants: Tensor | None = None
    writes: int = 0  # in-place operations on any tensor before it was tagged


def tag_of(tensor: Tensor) -> Tag:
    return getattr(tensor, "_scoring_tag", None) or Tag()


Tagger = Callable[[Tensor], Tag]


def set_tag(tensor: Tensor, tag: Tag) -> None:
    tensor._scoring_tag = tag
