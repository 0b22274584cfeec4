"""Constant arrays as C, each content once."""

import numpy as np

from data.errors import UserError

TYPES = {"f": "float", "H": "uint16_t", "I": "uint32_t", "i": "int32_t"}
LONG = 2048  # floats from which an array is a string: compilers read that ten times as fast
LINE = 24  # numbers, or floats of a string

_ESCAPES = [chr(b) if 32 <= b < 127 and chr(b) not in '"\\?0123456789' else f"\\{b:03o}"
            for b in range(256)]  # fmt: skip
_WIDTHS = np.array([len(e) for e in _ESCAPES])
_TABLE = np.array([list(e.ljust(4).encode()) for e in _ESCAPES], np.uint8)
_USED = np.arange(4) < _WIDTHS[:, None]


def _number(value: float) -> str:
    text = f"{value:.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


def _string(content: bytes) -> str:
    """As string literals, a line each. Digits are escaped: after an octal escape one would end
    nowhere else."""
    lines = []
    for at in range(0, len(content), 4 * LINE):
        codes = np.frombuffer(content[at : at + 4 * LINE], np.uint8)
        lines.append(f'    "{_TABLE[codes][_USED[codes]].tobytes().decode()}"')
    return "\n".join(lines)


def number(value: float) -> str:
    """A float."""
    return f"{float(np.float32(value))!r}f"


def struct(fields: dict[str, object], indent: str = "    ") -> str:
    """An initializer; a field may be a struct, too."""
    lines = []
    for name, value in fields.items():
        text = struct(value, indent + "    ") if isinstance(value, dict) else str(value)
        lines.append(f"{indent}.{name} = {text},")
    return "{\n" + "\n".join(lines) + "\n" + indent[4:] + "}"


class Constants:
    """Arrays in the order in which they were first asked for."""

    def __init__(self) -> None:
        self.names: dict[tuple[str, bytes], str] = {}
        self.text: list[str] = []
        self.bytes = 0

    def array(self, values: np.ndarray, kind: str) -> str:
        """The name of an array of a `kind` of TYPES; of none, "0"."""
        values = np.ascontiguousarray(values, kind).reshape(-1)
        if not len(values):
            return "0"
        if kind == "f" and not np.isfinite(values).all():
            raise UserError("--c-source: the network has weights that are not finite numbers")
        key = kind, values.tobytes()
        if key not in self.names:
            self.names[key] = self._write(f"{kind.lower()}{len(self.names)}", values, kind)
            self.bytes += values.nbytes
        return self.names[key]

    def _write(self, name: str, values: np.ndarray, kind: str) -> str:
        count = len(values)
        if kind == "f" and count >= LONG:
            little = values.astype("<f4").tobytes()
            self.text.append(
                f"static const union {{\n    char bytes[{4 * count + 1}];\n"
                f"    float values[{count}];\n}} {name} = {{\n{_string(little)}}};\n"
            )
            return f"{name}.values"
        numbers = values.tolist()
        texts = [_number(v) for v in numbers] if kind == "f" else list(map(str, numbers))
        rows = (", ".join(texts[i : i + LINE]) for i in range(0, count, LINE))
        body = ",\n    ".join(rows)
        self.text.append(f"static const {TYPES[kind]} {name}[{count}] = {{\n    {body}}};\n")
        return name

    def planes(self, offsets: np.ndarray) -> str:
        """The initializer of a `planes`: a regular sequence, or a table."""
        steps = np.unique(np.diff(offsets))
        if len(steps) > 1 or (len(steps) and steps[0] < 0):
            return f"{{0, 0, {self.array(offsets, 'I')}}}"
        return f"{{{offsets[0]}, {steps[0] if len(steps) else 0}, 0}}"
