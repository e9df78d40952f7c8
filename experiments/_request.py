"""What a command asks for, turned into the stream's values: model, layout, step, program, data."""

import importlib
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from experiments._options import Options
from jaxpar.catalogue import DATA, HARDWARE, MODELS, STRATEGIES
from jaxpar.data._record import Dataset
from jaxpar.hardware._record import Hardware
from jaxpar.layout import Layout, lay_out
from jaxpar.mesh import MeshShape
from jaxpar.models._record import Model
from jaxpar.program import Program, compile_step
from jaxpar.refusal import RequestError, unknown
from jaxpar.step import MODES, Step, make_step
from jaxpar.strategies._record import Strategy, combine, parts
from jaxpar.train import Training, check_data, optimizer_of, set_fields


@dataclass(frozen=True)
class Request:
    """One model under one layout, and how to train it; nothing is compiled yet."""

    layout: Layout
    hardware: Hardware
    training: Training
    mode: str

    @property
    def name(self) -> str:
        """A folder name that tells runs apart."""
        mesh = str(self.layout.mesh).replace(",", "-").replace("=", "")
        return f"{self.layout.model.name}-{self.layout.strategy.name}-{mesh}"

    def make(self, layout: Layout) -> Step:
        """The training step of a layout, as this request wants it trained."""
        return make_step(
            layout,
            optimizer=optimizer_of(self.training, layout),
            mode=self.mode,
            microbatches=self.training.microbatches,
        )

    def compile(self) -> Program:
        """The step, compiled."""
        return compile_step(self.make(self.layout), hardware=self.hardware)


def request(options: Options, model_name: str, **defaults: Any) -> Request:
    """Read a whole request; every sentence of refusal comes before anything is compiled."""
    changes = {**defaults, **options.changes}
    batch = changes.pop("batch", None)
    training, changes = set_fields(Training(), _typed(Training(), changes))
    model = load_model(model_name)
    _check_fields(model, training, changes)
    model = model.with_fields(**_typed(model.config, changes))
    if batch is not None:
        model = model.with_batch_size(batch)
    hardware = HARDWARE.load(options.hardware)()
    if options.mode not in MODES:
        raise unknown("mode", options.mode, MODES)
    usual = "data=1" if hardware.kind == "local" else "data=4,model=2"
    mesh = MeshShape.parse(usual if options.mesh is None else options.mesh)
    layout = lay_out(model, strategy=load_strategy(options.strategy), mesh=mesh)
    return Request(layout, hardware, training, options.mode)


def load_model(name: str) -> Model:
    """A catalogue model, or the one that `package.module:factory` returns."""
    if ":" not in name:
        return MODELS.load(name)()
    module_name, _, factory_name = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RequestError(f"model '{name}': cannot import '{module_name}' ({error})") from error
    finally:
        sys.path.pop(0)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        known = [n for n in vars(module) if callable(getattr(module, n)) and n[0] != "_"]
        raise unknown(f"factory in '{module_name}'", factory_name, known)
    model = factory()
    if not isinstance(model, Model):
        raise RequestError(
            f"model '{name}': the factory returned {type(model).__name__}; return a jaxpar.Model"
        )
    return model


def load_strategy(text: str) -> Strategy:
    """One strategy, or several joined by +."""
    each = [STRATEGIES.load(name)() for name in parts(text)]
    return each[0] if len(each) == 1 else combine(*each)


def load_data(model: Model, name: str | None) -> Dataset:
    """The data a model is to read: by catalogue name or token file, else its usual."""
    name = name or model.data
    if name is None:
        raise RequestError(f"model '{model.name}' names no usual data: say --data NAME")
    sizes = {"sequence": model.config.sequence} if hasattr(model.config, "sequence") else {}
    if name.endswith(".bin") or Path(name).is_dir():
        vocabulary = getattr(model.config, "vocabulary", None)
        data = DATA.load("tokens")(name, vocabulary=vocabulary, **sizes)
    elif name in ("tokens", "iterable"):
        raise RequestError(f"data '{name}' is read from a file or from Python: give a .bin path")
    else:
        accepts = {} if name == "digits" else sizes
        data = DATA.load(name)(**accepts)
    check_data(model, data)
    return data


def _check_fields(model: Model, training: Training, changes: dict[str, Any]) -> None:
    own = [] if model.config is None else [f.name for f in fields(model.config)]
    for name in changes:
        if name not in own:
            known = [*own, *(f.name for f in fields(training))]
            raise unknown(f"field of '{model.name}' or of training", name, known)


def _typed(record: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Refuse a value of another kind than the field's own: text for a number, a fraction for a count."""
    typed = dict(changes)
    for name, value in changes.items():
        usual = getattr(record, name, None)
        if usual is None or value is None:
            continue
        fits = type(value) is type(usual) or (isinstance(usual, float) and type(value) is int)
        if not fits:
            raise RequestError(
                f"--set {name}={value}: {name} is {_kind(usual)} (its default is {usual}), and "
                f"'{value}' is not"
            )
        if type(value) is int and value < 0:
            raise RequestError(f"--set {name}={value}: {name} is a count; use 0 or more")
        typed[name] = type(usual)(value)
    return typed


def _kind(value: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(
        type(value), "a word"
    )
