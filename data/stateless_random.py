"""Stateless (counter-based) random numbers: a pure function of (seed, epoch, sample index, draw).

A generator with a state would give an image other numbers as soon as the batch size, the number of
workers or the point of a resume changed. Here each is a hash of its coordinates (SplitMix64: a
counter times the golden ratio, then a bijective mixer) in int64 tensor operations that wrap modulo
2^64, hence identical on every device."""

import torch
from torch import Tensor

# SplitMix64's constants (Steele, Lea, Flood 2014), as the int64 of the same 64 bits
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)
DRAWS_PER_SAMPLE = 16


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's `>>` on int64 copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: int64 of any shape -> int64 with well mixed bits."""
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def bits(seed: int, epoch: int | Tensor, index: Tensor, draws: int) -> Tensor:
    """64 random bits, int64 (draws, B), for the first draws of the samples `index` (B,), on its
    device; `epoch` may be a tensor () there, too."""
    assert draws <= DRAWS_PER_SAMPLE
    # full, not tensor: nothing is copied to a GPU, which its graphs could not repeat
    seed, epoch, key = (
        v if isinstance(v, Tensor) else torch.full((), v, dtype=torch.int64, device=index.device)
        for v in (seed, epoch, 0)
    )
    counter = index * DRAWS_PER_SAMPLE + torch.arange(draws, device=index.device)[:, None]
    for coordinate in (seed, epoch, counter):
        key = mix(key + (coordinate + 1) * GOLDEN)
    return key


def uniform(seed: int, epoch: int | Tensor, index: Tensor, draws: int) -> Tensor:
    """float32 in [0, 1), (draws, B): 24 bits each, which float32 holds exactly."""
    return _shift_right(bits(seed, epoch, index, draws), 40).float() * 2.0**-24


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A seed in [0, 2^63) for a library that wants a generator of its own per sample."""
    return int(bits(seed, epoch, torch.tensor([index]), 1)) & ((1 << 63) - 1)


def shuffled(seed: int, epoch: int, samples: int) -> Tensor:
    """A permutation of range(samples) (int64, CPU) that depends on (seed, epoch) only."""
    # Draws count from 0 upwards, so the last one of a sample is free for its place in the order.
    return bits(seed, epoch, torch.arange(samples), DRAWS_PER_SAMPLE)[-1].argsort(stable=True)
