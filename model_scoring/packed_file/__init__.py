"""The .ec2t format: a whole network, entropy-coded."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(__name__, format="Packed PackedFile pack read_any")
