"""Every plain model there is here, by the name of its file and of its factory."""

import importlib
import pkgutil
from collections.abc import Callable

import plain
from jaxpar import Model


def factories() -> dict[str, Callable[[], Model]]:
    found = {}
    for _, name, _ in pkgutil.iter_modules(plain.__path__):
        if name.startswith("_") or name == "catalogue":
            continue
        module = importlib.import_module(f"plain.{name}")
        for attribute, value in vars(module).items():
            if attribute.endswith(("in_nnx", "in_linen")):
                found[f"{name}:{attribute}"] = value
    return found
