"""The `.ec2t` format: a packed network, everything it needs, as small as it gets.

Ternary and other layers of few values go through a context model with logistic mixing and rANS
(entropy coding), or with static probabilities where their weights are independent; the other
tensors through a general compressor. A file is

    "EC2T", version (1 byte), header's length (4), CRC-32 of the two and the header (4)
    header    CRC-32 of the tensors' names, shapes and types (4), number of sections, for each:
              3 x the tensors left out before its own + its kind (0 context model, 1 dense, 2
              static; in version 2, written where nothing is static, 2 x them + its kind), its
              length, its CRC-32 (4);
              then the description: its length, and JSON deflated with WORDS as what came before
    sections  one for each layer of few values (quantized_layers.py) and each other large tensor
              (float_tensors.py), then one for all tensors that are left

Of tied tensors the first is stored; the description names the others. Steps of activations, which
it names by their layers, are never rounded. Numbers without a size are varints, others
little-endian. Names and shapes are those of the network described, so they take no bytes. Any
section can be read without the others.
"""

import json
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.errors import UserError
from model_compound_scaling.checkpoints import Checkpoint, CheckpointError, read_checkpoint
from model_compound_scaling.checkpoints.network_checkpoint import require_finite
from model_compound_scaling.checkpoints.untrusted import description_limits as limits
from model_compound_scaling.networks.building import expected_tensors
from model_compound_scaling.networks.quantizers import step_names
from model_compound_scaling.networks.registry import NetworkSpec
from model_scoring.packed_file.float_tensors import WIDE, as_array, pack_dense, unpack_dense
from model_scoring.packed_file.quantized_layers import Coded, pack_layers, quantized, unpack_layers
from model_scoring.packed_file.varint import read_varint, varint

MAGIC = b"EC2T"
ADAPTIVE, DENSE, STATIC = range(3)
KIND_COUNTS = {2: 2, 3: 3}  # versions that are read, and how many kinds of sections they have
START = len(MAGIC) + 1 + 4 + 4
ALONE = 4096  # values of a tensor that gets a section of its own
MOST_JSON = 1 << 20
KINDS = ("running_mean", "bias", "matrix", "weight", "running_var")  # signed ones first
# part of the format: what descriptions are made of takes hardly a byte
WORDS = (
    b'"stem":16,"head":1280,"blocks":[7,7,7],"channels":[16,32,64],"origin":"tf","widths":{'
    b'"image_size":224,"class_names":["0","1"CIFAR10"ImageNet"ImageFolder"Shapes"FashionMNIST'
    b'resnet18"torchvision:efficientnet-b1"lenet-5"image_micronet"'
    b'{"network":{"model":"cifar_micronet","num_classes":100,"arguments":{}},"half":false,"wide":['
    b'{"network":{"model":"resnet20","num_classes":10,"arguments":{}},"half":true,"data":{'
    b'"dataset":"CIFAR100","image_size":32,"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225],'
    b'"mean":[0.49137254901960785,0.4823529411764706,0.4466666666666667],'
    b'"std":[0.24705882352941178,0.24352941176470588,0.2615686274509804],"class_names":["'
)
REST = ""  # stands for the section of all other tensors
DAMAGED = (ValueError, TypeError, KeyError, AttributeError, RecursionError, zlib.error)


@dataclass(frozen=True)
class Packed:
    """A packed network."""

    content: bytes
    quantized: dict[str, int]  # bytes of each quantized layer
    wide: list[str]  # tensors beyond the range of fp16, kept as they were


@dataclass(frozen=True)
class Section:
    """Where a file has a tensor's bytes, or those of all tensors without a section."""

    kind: int  # ADAPTIVE, DENSE or STATIC
    start: int
    length: int
    crc: int


def _crc(*parts: bytes) -> bytes:
    return zlib.crc32(b"".join(parts)).to_bytes(4, "little")


def _signature(tensors: Mapping[str, Tensor]) -> bytes:
    lines = (f"{name} {tuple(t.shape)} {t.dtype}\n" for name, t in tensors.items())
    return _crc("".join(lines).encode())


def _tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that share all their memory with one before, with that one's name."""
    first: dict[tuple, str] = {}
    places = {n: (t.data_ptr(), t.shape, t.stride(), t.dtype) for n, t in state.items()}
    owners = {n: first.setdefault(place, n) for n, place in places.items() if state[n].numel()}
    return {name: owner for name, owner in owners.items() if owner != name}


def _by_kind(tensors: Mapping[str, Tensor], without: Container[str]) -> list[str]:
    """Names of the other tensors: all means, all biases, ... Alike values compress better."""
    others = {name: t for name, t in tensors.items() if name not in without}
    kinds = {n: "matrix" if t.dim() > 1 else n.rpartition(".")[2] for n, t in others.items()}
    places = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(kinds, key=lambda n: (places.get(kinds[n], len(KINDS)), kinds[n]))


def pack(
    state: Mapping[str, Tensor], spec: NetworkSpec, data: Mapping, *, half: bool = True
) -> Packed:
    """The bytes of a network: `state` is its whole state dict, `data` as in checkpoints. Layers of
    few values and steps of activations are kept exactly; `half` rounds other floats to fp16 where
    it can hold them."""
    every, tied = state, _tied(state)
    state = {name: tensor for name, tensor in every.items() if name not in tied}
    arrays = {name: as_array(t) for name, t in state.items()}
    layers = {name: q for name, a in arrays.items() if (q := quantized(a + 0 if half else a))}
    others = {name: t for name, t in state.items() if name not in layers}
    wide = [n for n, t in others.items() if half and t.dtype in WIDE and t.half().isinf().any()]
    exact = {*wide, *step_names(spec.activations)}
    stored = {n: as_array(t, half=half and n not in exact) for n, t in others.items()}
    packed = pack_layers(layers)
    sections = {n: packed[n].content if n in packed else pack_dense({n: stored[n]})
                for n, a in arrays.items() if n in packed or a.size >= ALONE}  # fmt: skip
    kinds = {n: STATIC if coded.static else ADAPTIVE for n, coded in packed.items()}
    version = 3 if STATIC in kinds.values() else 2
    sections[REST] = pack_dense({n: stored[n] for n in _by_kind(state, sections)})
    optional = {"data": data, "wide": wide, "tied": tied}
    description = {"network": spec.content(), "half": half}
    description |= {key: value for key, value in optional.items() if value}
    table = _table(list(every), sections, kinds, KIND_COUNTS[version])
    header = _signature(every) + table + _json(description)
    start = MAGIC + bytes([version]) + len(header).to_bytes(4, "little")
    content = start + _crc(start, header) + header + b"".join(sections.values())
    return Packed(content, {n: len(coded.content) for n, coded in packed.items()}, wide)


def _json(description: dict) -> bytes:
    text = json.dumps(description, separators=(",", ":")).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=WORDS)
    return varint(len(text)) + deflate.compress(text) + deflate.flush()


def _table(
    names: list[str], sections: Mapping[str, bytes], kinds: Mapping[str, int], kind_count: int
) -> bytes:
    """`kinds`: of the sections that are not dense."""
    result, last = varint(len(sections)), -1
    for name, content in sections.items():
        at = names.index(name) if name else len(names)
        result += varint(kind_count * (at - last - 1) + kinds.get(name, DENSE))
        result += varint(len(content)) + _crc(content)
        last = at
    return result


class PackedFile:
    """A packed network, opened: its description is checked, its tensors are read on demand."""

    def __init__(self, path: Path, *, trusted: str | None = None) -> None:
        """`trusted`: the one `module:function` whose code the file may have run to build its
        network. Raises CheckpointError, naming the file, if it is damaged or none of ours."""
        self.path, self.trusted = path, trusted
        with self._named():
            self._content = path.read_bytes()
            header = self._header()
            table, at = self._table(header)
            self._description(header, at)
        # what a file of this size may describe: nothing larger is built to look at its shapes
        size, described = len(self._content), self.network.content()
        bounds = limits.Bounds(tensors=1000 + size // 32, width=max(limits.WIDEST, size))
        limits.check_description(path, network=described, data=self.data, bounds=bounds)
        with self._named():
            self.expected = self._tensors(header[:4])
            self.stored = self._stored()
            self.sections = self._sections(table)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors name the file."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from None
        except CheckpointError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from None

    def _header(self) -> bytes:
        content = self._content
        if content[: len(MAGIC)] != MAGIC or len(content) < START:
            raise CheckpointError("no packed network, or only its beginning")
        size = int.from_bytes(content[5:9], "little")
        header = content[START : START + size]
        if content[4] not in KIND_COUNTS:
            known = " and ".join(map(str, KIND_COUNTS))
            raise CheckpointError(f"format {content[4]}, this program knows {known}, or damaged")
        if len(header) < size or _crc(content[:9], header) != content[9:START]:
            raise CheckpointError("its header is damaged or cut off")
        return header

    def _table(self, header: bytes) -> tuple[list[tuple[int, Section]], int]:
        """Sections and the tensors they are for, by number, and where the description begins."""
        count, at = read_varint(header, 4)
        start, number, table = START + len(header), -1, []
        kind_count = KIND_COUNTS[self._content[4]]
        for _ in range(count):
            step, at = read_varint(header, at)
            length, at = read_varint(header, at)
            number += step // kind_count + 1
            crc = int.from_bytes(header[at : at + 4], "little")
            table.append((number, Section(step % kind_count, start, length, crc)))
            start, at = start + length, at + 4
        if start != len(self._content):
            raise CheckpointError(f"{len(self._content):,} bytes instead of {start:,}: cut off")
        return table, at

    def _description(self, header: bytes, at: int) -> None:
        size, start = read_varint(header, at)
        if size > MOST_JSON:
            raise CheckpointError("its description is impossibly long")
        try:
            text = zlib.decompressobj(-15, zdict=WORDS).decompress(header[start:], size + 1)
            if len(text) != size:
                raise ValueError(f"{len(text)} bytes instead of {size}")
            found = json.loads(text)
            if unknown := found.keys() - {"network", "half", "data", "wide", "tied"}:
                raise ValueError(f"unknown {unknown}")
            self.network, self.data = NetworkSpec(**found["network"]), found.get("data", {})
            self.half = bool(found["half"])
            self.exact = {*found.get("wide", []), *step_names(self.network.activations)}
            self.tied = {str(n): str(owner) for n, owner in found.get("tied", {}).items()}
        except DAMAGED as error:
            raise CheckpointError(f"its description is damaged ({str(error)[:120]})") from None

    def _tensors(self, signature: bytes) -> dict[str, Tensor]:
        """Names, shapes and types, without values."""
        model = str(self.network.model)
        if limits.runs_foreign_code(model) and model != self.trusted:
            raise CheckpointError(
                f"it names {model} as its builder, whose code would run: pass --model {model} if "
                "you trust it"
            )
        try:
            expected = expected_tensors(self.network)
        except UserError as error:  # e.g. a builder that is not installed here
            raise CheckpointError(str(error)) from None
        except Exception as error:  # arguments that make no sense fail anywhere
            raise CheckpointError(f"it describes no network ({error!r})") from None
        if _signature(expected) != signature:
            raise CheckpointError(f"{self.network.model} has other tensors here than in the file")
        return expected

    def _stored(self) -> dict[str, Tensor]:
        """The tensors but for those that are tied to one of them."""
        stored = {name: t for name, t in self.expected.items() if name not in self.tied}
        for name, owner in self.tied.items():
            one, other = self.expected.get(name), stored.get(owner)
            if one is None or other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
                raise CheckpointError("it ties tensors that cannot be the same")
        return stored

    def _sections(self, table: list[tuple[int, Section]]) -> dict[str, Section]:
        names, numbers = [*self.expected, REST], [number for number, _ in table]
        if not numbers or numbers[-1] != len(names) - 1 or table[-1][1].kind != DENSE:
            raise CheckpointError("its sections are not those of the network")
        sections = {names[number]: section for number, section in table}
        if sections.keys() & self.tied.keys():
            raise CheckpointError("it has a section of a tensor that is tied to another")
        for tensor in (self.expected[name] for name, s in sections.items() if s.kind != DENSE):
            if tensor.dim() < 2 or tensor.dtype != torch.float32:
                raise CheckpointError("it has codes where none can be")
        return sections

    def _dense(self, section: str, content: bytes) -> dict[str, Tensor]:
        """The tensors of a section of dense ones, in the types of the network."""
        names = [section] if section != REST else _by_kind(self.stored, self.sections)
        shapes, types, found = {}, {}, {}
        for name in names:
            expected, half = self.expected[name], self.half and name not in self.exact
            types[name] = as_array(torch.empty(0, dtype=expected.dtype), half=half).dtype
            shapes[name] = tuple(expected.shape)
        for name, array in unpack_dense(content, shapes, types).items():
            tensor, dtype = torch.from_numpy(array), self.expected[name].dtype
            # of bfloat16 the bits were kept
            found[name] = tensor.view(dtype) if dtype == torch.bfloat16 else tensor.to(dtype)
        return found

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors. Only the sections that hold them are decoded."""
        owners, contents = {name: self.tied.get(name, name) for name in names}, {}
        with self._named():
            for name in dict.fromkeys(n if n in self.sections else REST for n in owners.values()):
                section = self.sections[name]
                contents[name] = self._content[section.start : section.start + section.length]
                if zlib.crc32(contents[name]) != section.crc:
                    raise CheckpointError(f"{name or 'its last section'} is damaged")
            kinds = {n: self.sections[n].kind for n in contents}
            layers = {n: Coded(contents.pop(n), kind == STATIC)
                      for n, kind in kinds.items() if kind != DENSE}  # fmt: skip
            unpacked = unpack_layers(layers, {n: tuple(self.expected[n].shape) for n in layers})
            found = {name: torch.from_numpy(q.weights()) for name, q in unpacked.items()}
            for name, content in contents.items():
                found |= self._dense(name, content)
        return {name: found[owner] for name, owner in owners.items()}


def read_any(path: Path, *, trusted: str | None = None) -> Checkpoint:
    """A packed file, whatever its name, or any other checkpoint; `trusted` as for PackedFile."""
    packed = False
    with suppress(OSError), path.open("rb") as file:  # read_checkpoint says what is wrong
        packed = file.read(len(MAGIC)) == MAGIC
    if not packed:
        return read_checkpoint(path)
    opened = PackedFile(path, trusted=trusted)
    state = opened.read(opened.expected)
    require_finite(state, path)
    content = {"network": opened.network.content(), "data": opened.data, "state_dict": state}
    return Checkpoint(path, state, opened.network, content)
