"""One training run in a folder: resumed, recorded, and nobody else's."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    run="Run",
    resume="RunRequest",
    history="Configuration History copy_best finished",
    folder_lock="FolderInUse hold_folder turn",
    save_interval="Interval",
)
