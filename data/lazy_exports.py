"""A package's public names, each imported when it is first asked for (PEP 562). Importing torch and
torchvision takes seconds; a command line that only prints its help, or says what is wrong with a
flag, must not wait for them because a package's face names what needs them."""

import importlib
from collections.abc import Callable


def lazy_exports(package: str, **names: str) -> tuple[list[str], Callable[[str], object]]:
    """`__all__` and `__getattr__` of a package; `names`: module of the package -> its public names,
    with spaces between them."""
    module_of = {name: module for module, listed in names.items() for name in listed.split()}

    def __getattr__(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return sorted(module_of), __getattr__
