"""Files that hold networks: read, recognised, and saved so that no crash loses them."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    errors="CheckpointError DiskError",
    atomic_save="read_file write_file",
    network_checkpoint="Checkpoint load_network network_content read_checkpoint",
    recognition="network_spec recognise",
)
