"""What the counted network computes and stores with."""

from dataclasses import dataclass

from model_scoring.counting.layer_widths import LayerWidths

WORD = 32  # bits of one parameter, and of the operands of one operation


@dataclass(frozen=True)
class Settings:
    """What the counted network computes and stores with."""

    value_bits: int = 16
    mul_bits: int = 16
    add_bits: int = 32
    tree_adder: bool = True
    formats: bool = True  # CSR, CER and the denser ternary format too
    accumulators: int | None = None  # bits of all sums of whole numbers; None: trees, as they grow
    widths: tuple[LayerWidths, ...] = ()  # of a network that does not tell them itself

    def parameters(self, values: int) -> float:
        """Parameters of 32 bits that so many values take."""
        return values * self.value_bits / WORD

    def operations(self, adds: float, mults: float, bits: int | None = None) -> dict[str, float]:
        """In units of 32-bit operations; `bits` of the factors, if they are of another width."""
        bits = bits or self.mul_bits
        return {"adds": adds * self.add_bits / WORD, "mults": mults * bits / WORD}


# the reference network of the score, for data sets that have one whatever the size of the images
REFERENCE_OF = {"ImageNet": "imagenet", "CIFAR10": "cifar", "CIFAR100": "cifar"}
RULE_SETS = ("published", "strict")
