"""Where a run takes place: devices, processes, signals, the console."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    devices="choose_device for_processes lay_out",
    processes="from_main is_main world_size",
    signals="Stopped deferred listening",
    log="Log",
)
