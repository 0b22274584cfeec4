"""Errors a user can cause and mend: one line on stderr and an exit code, never a traceback."""


class UserError(ValueError):
    """Something in the command line or its files is wrong; the message names it and the fix."""

    exit_code = 2
    shared = False  # raised alike in all processes of a run: the first one says it


class FolderInUse(UserError):
    """Another run owns the output folder."""

    exit_code = 3


class DataError(UserError):
    """A data set is missing, empty or has an unreadable file."""

    exit_code = 4


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to another network."""

    exit_code = 5


class NonFiniteLoss(UserError):
    """Training diverged."""

    exit_code = 6
    shared = True


class DiskError(UserError):
    """Results could not be written."""

    exit_code = 7
