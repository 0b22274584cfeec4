"""`NAME.manifest` beside a file: its size and SHA-256, and what wrote it."""

import hashlib
import json
import platform
from pathlib import Path

import torch

BLOCK = 1 << 20
MANIFEST_LIMIT = 1 << 16  # bytes; a manifest has about 200


def manifest_path(path: Path) -> Path:
    """Where the manifest of a file is."""
    return path.with_name(f"{path.name}.manifest")


def waiting(path: Path) -> Path:
    """Where the next version of a file is written before it takes the file's place."""
    return path.with_name(f".{path.name}.tmp")


def manifest_text(name: str, *, size: int, sha256: str) -> str:
    """The manifest of a file of `size` bytes, as JSON."""
    content = {
        "file": name,
        "bytes": size,
        "sha256": sha256,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return json.dumps(content, indent=2) + "\n"


def sum_of_file(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file, read in blocks."""
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size += len(block)
            digest.update(block)
    return size, digest.hexdigest()


def complaint(manifest: Path, *, size: int, sha256: str) -> str | None:
    """How a file differs from its manifest, as a clause about the file; None if it agrees."""
    try:
        with manifest.open("rb") as file:
            content = json.loads(file.read(MANIFEST_LIMIT))
        claimed = content["bytes"], content["sha256"]
    except OSError as error:
        return f"has a manifest that cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "has a damaged manifest"
    if claimed[0] != size:
        return f"has {size:,} bytes where its manifest says {str(claimed[0])[:20]}"
    if claimed[1] != sha256:
        return "is damaged: its SHA-256 differs from the manifest's"
    return None
