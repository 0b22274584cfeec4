"""What the counted network computes and stores with."""

from dataclasses import dataclass

WORD = 32  # bits of one parameter, and of the operands of one operation


@dataclass(frozen=True)
class Settings:
    """What the counted network computes and stores with."""

    value_bits: int = 16
    mul_bits: int = 16
    add_bits: int = 32
    tree_adder: bool = True
    formats: bool = True  # CSR, CER and the denser ternary format too

    def parameters(self, values: int) -> float:
        """Parameters of 32 bits that so many values take."""
        return values * self.value_bits / WORD

    def operations(self, adds: float, mults: float) -> dict[str, float]:
        """In units of 32-bit operations."""
        return {"adds": adds * self.add_bits / WORD, "mults": mults * self.mul_bits / WORD}


# the reference network of the score, for data sets that have one whatever the size of the images
REFERENCE_OF = {"ImageNet": "imagenet", "CIFAR10": "cifar", "CIFAR100": "cifar"}
RULE_SETS = ("published", "strict")
