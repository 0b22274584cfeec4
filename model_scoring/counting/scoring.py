"""Score a network: trace it, count it under both rule sets, add up."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.errors import UserError, some
from model_compound_scaling.networks.few_values import few_values, zero_share_of
from model_scoring.counting import published_rules, strict_rules
from model_scoring.counting.costs import Count
from model_scoring.counting.layer_widths import with_widths
from model_scoring.counting.settings import RULE_SETS, WORD, Settings
from model_scoring.counting.stored_once import StoredOnce
from model_scoring.dead_channels.dead_code import dead_channels
from model_scoring.tracing.forward_pass import one_thread, trace
from model_scoring.tracing.operation_record import Record, Trace

# parameters and operations of the challenge's reference networks
REFERENCES = {
    "imagenet": (6.9e6, 1170e6),  # MobileNetV2-1.4
    "cifar": (36.5e6, 10.49e9),  # WideResNet-28-10
}
Masked = tuple[Tensor, Tensor | None]  # a tensor, and which of its values: bool; None: all
PICOJOULE = {16: (1.1, 0.4), 32: (3.7, 0.9)}  # float mult, add; Horowitz 2014, 45 nm


@dataclass(frozen=True)
class Total:
    """One rule set's sums over a network."""

    params: float
    adds: float
    mults: float
    storage_term: float
    compute_term: float
    energy_uj: float

    @property
    def ops(self) -> float:
        return self.adds + self.mults

    @property
    def score(self) -> float:
        return self.storage_term + self.compute_term

    @property
    def bytes(self) -> float:
        return self.params * WORD / 8


@dataclass(frozen=True)
class Score:
    """A network's costs, record by record."""

    trace: Trace
    counts: dict[str, list[Count]]  # by rule set
    totals: dict[str, Total]
    parameters: int
    zeros: float  # share of all parameters, as the pass uses them
    reference: str
    settings: Settings
    shape: tuple[int, int, int]  # of the image: channels, height, width

    @property
    def records(self) -> list[Record]:
        return self.trace.records


def energy(adds: float, mults: float, settings: Settings) -> float:
    """Microjoule of operations given in 32-bit units; Horowitz' figure for the width at hand."""
    mult, _ = PICOJOULE[16 if settings.mul_bits <= 16 else 32]
    _, add = PICOJOULE[16 if settings.add_bits <= 16 else 32]
    return 1e-6 * WORD * (mults / settings.mul_bits * mult + adds / settings.add_bits * add)


def total(counts: list[Count], settings: Settings, reference: str) -> Total:
    """Sum of a rule set's counts and its score."""
    params, adds, mults = (sum(getattr(c, f) for c in counts) for f in ("params", "adds", "mults"))
    most_params, most_ops = REFERENCES[reference]
    terms = params / most_params, (adds + mults) / most_ops
    return Total(params, adds, mults, *terms, energy(adds, mults, settings))


def score(
    network: nn.Module,
    shape: tuple[int, int, int],
    *,
    family: str = "other",
    settings: Settings | None = None,
    reference: str | None = None,
    rules: Collection[str] = RULE_SETS,
) -> Score:
    """Count a network for one image of (channels, height, width) under the rule sets.

    `family` as in the registry's rows; only `published` looks at it. `reference` is "imagenet" or
    "cifar", by default the former for images of more than 64 pixels. Raises UserError if the
    network cannot take such an image or has weights that are no numbers.
    """
    settings = settings or Settings()
    reference = reference or ("imagenet" if max(shape[1:]) > 64 else "cifar")
    with one_thread():
        for name, tensor in network.named_parameters():
            # a finite sum has finite terms, and is the faster test
            if not bool(tensor.sum().isfinite() or tensor.isfinite().all()):
                raise UserError(f"{name} holds NaN or infinite values: nothing to count")
    traced = with_widths(trace(network, shape), settings.widths)
    counts = {}
    with one_thread():
        if "published" in rules:
            counts["published"] = published_rules.count(traced, settings, family=family)
        if "strict" in rules:
            gone = dead_channels(traced, buildable=False).gone
            counts["strict"] = strict_rules.count(traced, settings, gone)
        zeros = zero_share_of(used_values(network, traced))
    parameters = sum(p.numel() for p in network.parameters())
    totals = {name: total(c, settings, reference) for name, c in counts.items()}
    return Score(traced, counts, totals, parameters, zeros, reference, settings, shape)


def used_values(network: nn.Module, traced: Trace) -> list[Masked]:
    """What stands for the parameters in the pass: under masks or another parametrization what is
    made of them; parameters that the pass never touches. With masks, each place in memory once."""
    unused = [network.get_parameter(name).detach() for name in traced.unused]
    return _once(traced, [t for record in traced.records for t in record.tensors] + unused)


def _once(traced: Trace, tensors: list[Tensor]) -> list[Masked]:
    """Tensors of a pass, and masks of values that are in none of those before them."""
    stored = StoredOnce(traced.records)
    shared = (stored.shared(t) and torch.ones(t.shape, dtype=torch.bool) for t in tensors)
    pairs = zip(tensors, shared, strict=True)
    return [(t, None if mask is False else stored.new(t, mask)) for t, mask in pairs]


def quantized_zeros(result: Score) -> float | None:
    """Share of zeros among the weights of layers of few values; None if there is no such layer."""
    weights = [r.weight for r in layers(result) if few_values(r.weight) is not None]
    return zero_share_of(_once(result.trace, weights)) if weights else None


def layers(result: Score) -> list[Record]:
    """Convolutions and linear layers, one that runs twice only once."""
    return [r for r in result.records if r.weights is not None and not r.shared]


def ternary_layers(result: Score) -> list[Record]:
    """Those that are ternary by their values."""
    return [r for r in layers(result) if r.ternary]


def warnings(result: Score) -> list[str]:
    """One line each: nothing ternary, operations without a rule, parameters never used."""
    lines = []
    if not ternary_layers(result):
        found = layers(result)
        named = ", ".join(f"{r.name} {len(r.weight.unique())}" for r in found[:4])
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        lines.append(f"no layer is ternary, counted as it is (distinct values: {named}{more})")
    pairs = zip(result.records, result.counts.get("strict", ()), strict=False)
    tight = [
        f"{record.name} {count.sums.bits} bits in {count.accumulator_bits}"
        for record, count in pairs
        if record.activation_bits and count.sums.bits > (count.accumulator_bits or WORD)
    ]
    if tight:
        lines.append(f"sums can overflow their accumulators: {some(tight)}")
    if result.trace.unknown:
        named = ", ".join(f"{name} ({n}x)" for name, n in result.trace.unknown.items())
        lines.append(f"operations without a rule, their arithmetic is not counted: {named}")
    if unused := result.trace.unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        lines.append(f"not used by the forward pass, not counted: {', '.join(unused[:3])}{more}")
    return lines


@torch.no_grad()
def prune_depthwise(network: nn.Module, threshold: float) -> list[str]:
    """Zero depthwise weights smaller than `threshold` times their layer's largest; 1 = off."""
    pruned = []
    for name, module in network.named_modules():
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        if depthwise and threshold != 1:
            magnitude = module.weight.abs()
            module.weight.masked_fill_(magnitude < threshold * magnitude.max(), 0.0)
            pruned.append(name)
    return pruned
