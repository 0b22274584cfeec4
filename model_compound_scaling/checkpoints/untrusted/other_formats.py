"""What a file is that is no checkpoint, and what to do about it: one row per kind. Asked only of
files that were refused."""

import io
import re
import zipfile

STATE_DICT = "save the state_dict() of the module that it was made of"
TORCH = "save a PyTorch state_dict()"

# what a file begins with -> a clause whose subject is the file
STARTS: dict[bytes, str] = {
    rb"\Z": "is damaged: it is empty; copy or download it again",
    rb"(?i)\s*<(!doctype|html|head|\?xml)": "is a web page, not the file that it links to",
    rb"version https://git-lfs": "is a Git LFS pointer, not the file it stands for: git lfs pull",
    rb'\s*\{.*"weight_map"': "lists the shards of a checkpoint: save all tensors in one file",
    rb"\s*[\[{]": f"is text (JSON), no checkpoint: {TORCH}",
    rb"EC2T": "is a packed network, which run_scoring.py reads: name the .pt it was made of",
    rb"\x08[\x03-\x1f][\x12\x1a\x22\x32\x3a\x42]": f"is an ONNX network: {STATE_DICT}",
    rb"\x89HDF\r\n\x1a\n": f"is an HDF5 file, as Keras writes: {TORCH}",
    rb"\x93NUMPY": f"is a NumPy array (.npy): {TORCH}",
    rb"GGUF": f"is a GGUF file: {TORCH}",
    rb".{4}TFL3": f"is a TensorFlow Lite network: {TORCH}",
    rb"\x1f\x8b": "is compressed (gzip, as .gz and .tar.gz): unpack it first",
    rb"\xfd7zXZ": "is compressed (xz): unpack it first",
    rb"BZh": "is compressed (bzip2): unpack it first",
    rb"\x28\xb5\x2f\xfd": "is compressed (zstd): unpack it first",
    rb"7z\xbc\xaf\x27\x1c": "is a 7z archive: unpack it first",
    rb".{257}ustar": "is a tar archive: unpack it first",
}
# a name in a zip archive -> the same
ENTRIES: dict[str, str] = {
    r"/constants\.pkl$": f"is a TorchScript archive, which holds code: {STATE_DICT}",
    r"archive_format$|serialized_\w+\.json$": f"is an exported program (.pt2): {STATE_DICT}",
    r"\.npy$": f"holds NumPy arrays (.npz): {TORCH}",
    r"\.weights\.h5$": f"is a Keras network: {TORCH}",
    r"\.(pt|pth|th|ckpt|safetensors)$": "is a zip archive that holds checkpoints: unpack it first",
}


def name(raw: bytes) -> str | None:
    """What a file is, as a clause whose subject is the file; None for what is not known."""
    for start, what in STARTS.items():
        if re.match(start, raw, re.DOTALL):
            return what
    try:
        names = zipfile.ZipFile(io.BytesIO(raw)).namelist()
    except Exception:  # no archive, or one that is damaged in any way
        return None
    found = (what for entry, what in ENTRIES.items() if any(re.search(entry, n) for n in names))
    return next(found, None)
