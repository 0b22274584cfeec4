"""Errors of files: one line on stderr and an exit code."""

from data.errors import UserError


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to another network."""

    exit_code = 5


class DiskError(UserError):
    """Results could not be written."""

    exit_code = 7
