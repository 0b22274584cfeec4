"""What the three scripts share: flags, errors, exit codes, inputs."""

from data.lazy_exports import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    parser="Parser",
    entry="run start",
    shared_flags="add_data_flags add_machine_flags add_network_flags add_run_flags",
    inputs="known_input open_checkpoint open_data",
)
