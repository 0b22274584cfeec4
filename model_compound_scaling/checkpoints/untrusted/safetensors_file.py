"""The `.safetensors` format: the length of a JSON header (8 bytes), the header, tensors. It is read
by the package of that name, which checks that each tensor's bytes are in the file, once."""

from torch import Tensor

from data.errors import require_packages
from model_compound_scaling.checkpoints.untrusted.pickle_claims import Refused

HEADER_LIMIT = 8 << 20  # bytes; 100 or so a tensor
CLAIM_LIMIT = 100 << 20  # the format's own: with a larger length it is another kind of file


def _header_size(raw: bytes) -> int:
    return int.from_bytes(raw[:8], "little")


def is_one(raw: bytes) -> bool:
    """Whether a file is in this format, whole or not: by its content, whatever its name."""
    return raw[8:9] == b"{" and 2 <= _header_size(raw) <= CLAIM_LIMIT


def check_header(raw: bytes) -> None:
    """Raise Refused for a header that is cut off, or large enough to take much memory."""
    size = _header_size(raw)
    if size > HEADER_LIMIT:
        raise Refused(f"is a safetensors file with {size:,} bytes beside its tensors: too many")
    if 8 + size > len(raw):
        raise Refused("is a safetensors file, but cut off or damaged: its header is not complete")


def read(raw: bytes) -> dict[str, Tensor]:
    """The tensors. Raises Refused, or UserError if the package is missing."""
    fix = "pip install safetensors, or save a state_dict() with torch.save"
    require_packages("to read a .safetensors file, this needs", "safetensors", fix=fix)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(raw)
    # types that torch does not have are missing from a table
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Refused(f"is a safetensors file, but damaged or not for torch ({reason})") from None
