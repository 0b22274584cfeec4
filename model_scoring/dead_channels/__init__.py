"""What can leave the network: channels that nothing reads, and constants that fold exactly."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__, dead_code="DeadChannels dead_channels", removal="Thin thin"
)
