"""What can leave the network: channels that nothing reads, and constants."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(__name__, removal="Thin thin")
