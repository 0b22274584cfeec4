"""The classes of a data set and of a network, matched by their names."""

import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from data.errors import DataError, some


class Classes(NamedTuple):
    """The names of the classes by their numbers, and the number of each class of the data set."""

    names: list[str]
    labels: list[int]

    def renumbered(self) -> str:
        """In words, if the numbers are not the data set's own."""
        moved = [(own, label) for own, label in enumerate(self.labels) if own != label]
        if not moved:
            return ""
        own, label = moved[0]
        return (
            f"{len(moved)} of {len(self.labels)} classes are numbered as in the checkpoint, not as "
            f"in the data set: first {reprlib.repr(self.names[label])}, {label} instead of {own}"
        )


def match_classes(found: Sequence[str], network: Sequence[str]) -> Classes:
    """The classes `found` in a data set, numbered as the network's of the same names; as they are
    if the network's are not known. Names that only count stand for their numbers, whatever the
    other names. DataError, with the first differences, if the names are others."""
    own = list(range(len(found)))
    if len(network) != len(found) or list(network) == list(found):
        return Classes(list(found), own)
    here, there = _keys(found, network)
    ours, theirs = _unmatched(found, here, there), _unmatched(network, there, here)
    if ours or theirs:
        raise DataError(
            f"the data set's classes are not the network's: {ours} here, {theirs} there; choose "
            "the --dataset or --data-path it was trained on, or number them in the data set's "
            "order with --ignore-class-names"
        )
    number = {key: i for i, key in enumerate(there)}
    labels = [number[key] for key in here]
    if class_numbers(network):  # the data set knows more
        network = [found[labels.index(i)] for i in own]
    return Classes(list(network), labels)


def numbering(found: Sequence[str], network: Sequence[str]) -> str:
    """In words, if names that only count stand for a network's named classes."""
    numbers = class_numbers(found)
    if len(network) != len(found) or not numbers or class_numbers(network):
        return ""
    pairs = zip(found, (network[number] for number in numbers), strict=True)
    named = some([f"{own} is {reprlib.repr(name)}" for own, name in pairs])
    return f"the data set's class names only count, and stand for the checkpoint's: {named}"


def _keys(*lists: Sequence[str]) -> list[Sequence[Hashable]]:
    """What is compared in place of the names: numbers if one of the lists only counts, plain
    spellings if they are as different as the names, else the names."""
    counted = [class_numbers(names) for names in lists]
    if any(counted):
        return [numbers or range(len(lists[0])) for numbers in counted]
    plain = [[_plain(name) for name in names] for names in lists]
    return plain if all(len(set(keys)) == len(keys) for keys in plain) else list(lists)


def class_numbers(names: Sequence[str]) -> list[int] | None:
    """Numbers from 0, if the names say no more than that: "0" or "class 1" and so on, from 0 or 1,
    in any order, with or without leading zeros."""
    matches = [re.fullmatch(r"([^0-9]*)([0-9]{1,9})", name) for name in names]
    if not all(matches) or len({match[1] for match in matches}) > 1:
        return None
    numbers = [int(match[2]) for match in matches]
    for first in (0, 1):
        if sorted(numbers) == list(range(first, first + len(names))):
            return [number - first for number in numbers]
    return None


def _plain(name: str) -> str:
    """A name without what differs between the spellings of folders and lists, and between machines
    that take the bytes of folders' names for UTF-8 and those that do not."""
    name = name.encode(errors="surrogateescape").decode(errors="surrogateescape")
    return re.sub(r"[\s_/-]+", "", unicodedata.normalize("NFC", name).casefold())


def _unmatched(names: Sequence[str], keys: Sequence[Hashable], others: Sequence[Hashable]) -> str:
    """The first names, and how many more, whose keys are not among the others, or not once."""
    count, others = Counter(keys), set(others)
    pairs = zip(names, keys, strict=True)
    wrong = [name for name, key in pairs if count[key] > 1 or key not in others]
    return some([reprlib.repr(name) for name in wrong])
