"""A Case: one model under one layout, in words, and resolved into the stream's values.

The command line, experiments and notebooks all ask in these words. Every refusal is
a RequestError and comes before anything is compiled.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from inspect import iscoroutinefunction, signature
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxpar.core.catalogue import DATA, MODES, OPTIMIZERS, STRATEGIES
from jaxpar.core.errors import OwnCodeError, RequestError, expect, unknown, words_of
from jaxpar.core.kinds import fitting, kinds_of
from jaxpar.core.mesh import MeshShape
from jaxpar.data.record import Dataset
from jaxpar.hardware.own import PREFIX, hardware_of, with_figures
from jaxpar.hardware.record import XLA, Hardware
from jaxpar.inference.calling import told, trying
from jaxpar.layout.lay_out import lay_out
from jaxpar.layout.record import Layout
from jaxpar.models.record import Model, of_catalogue
from jaxpar.program.configuration import quiet_start
from jaxpar.program.devices import prepare
from jaxpar.program.record import Program, compile_step
from jaxpar.runtime.reading import check_data
from jaxpar.runtime.training import Training, optimizer_of, set_fields
from jaxpar.step.make_step import make_step
from jaxpar.step.record import Step
from jaxpar.strategies.record import Strategy, combine, parts


@dataclass(frozen=True)
class Case:
    """What to try, in the words of the command line.

    Attributes:
        model: a catalogue name, or `package.module:factory`.
        strategy: a catalogue name, or several joined by +.
        mesh: `axis=size,axis=size`, outermost first; None means data=4,model=2 on simulated
            and described devices and one device on local ones.
        hardware: a catalogue name, or a file that ends in .json.
        mode: auto or manual.
        data: a catalogue name, a token file, or None for the model's usual.
        set: by name, fields of the model or of training, options of the optimizer or of the
            strategy, and `batch`; by `xla.NAME`, XLA's own options; by `hardware.NAME`, figures of
            the hardware.
    """

    model: str
    strategy: str = "hybrid"
    mesh: str | None = None
    hardware: str = "cpu"
    mode: str = "auto"
    data: str | None = None
    set: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        made = "jaxpar.lay_out takes a Model, which jaxpar.model(module, loss, batch) makes"
        expect(
            "a case's model", self.model, str, f"give a catalogue name, or module:factory; {made}"
        )
        if not isinstance(self.mesh, str | None):
            object.__setattr__(self, "mesh", str(MeshShape.of(self.mesh)))
        for name in ("strategy", "hardware", "mode"):
            expect(f"a case's {name}", getattr(self, name), str, "give its name in the catalogue")
        expect("a case's set", self.set, Mapping, "give values by the names of fields")
        for name in self.set:
            expect("a name in a case's set", name, str, "give the name of a field")
        object.__setattr__(self, "set", MappingProxyType(dict(self.set)))

    def resolve(self) -> "Resolved":
        """The model laid out, the hardware found, the training read; nothing compiled yet."""
        changes = dict(self.set)
        batch = {"size": changes.pop("batch")} if "batch" in changes else {}
        told = {name: changes.pop(name) for name in list(changes) if name.startswith(XLA)}
        training, changes = set_fields(Training(), _typed(Training(), changes))
        figures = {n: changes.pop(n) for n in list(changes) if n.startswith(PREFIX)}
        hardware = with_figures(
            hardware_of(self.hardware).with_options(told),
            {name.removeprefix(PREFIX): value for name, value in figures.items()},
        )
        usual = "data=1" if hardware.kind == "local" else "data=4,model=2"
        mesh = MeshShape.parse(usual if self.mesh is None else self.mesh)
        prepare(mesh, hardware)
        with quiet_start():  # a factory may make arrays, which starts JAX
            model = load_model(self.model)
        options = strategy_options(self.strategy)
        strategy = load_strategy(
            self.strategy, **{n: changes.pop(n) for n in list(changes) if n in options}
        )
        rule = optimizer_options(training.optimizer)
        given = {n: changes.pop(n) for n in list(changes) if n in rule}
        own = _typed_options(OPTIMIZERS.load(training.optimizer), rule, given)
        _check_fields(model, training, changes, (*rule, *options))
        typed = _typed(model.config, changes)
        known = ":" not in self.model
        model = of_catalogue(self.model, **typed) if known else model.with_fields(**typed)
        if batch:
            model = model.with_batch_size(**batch)
        MODES.load(self.mode)  # an unknown one is refused before anything is laid out
        layout = lay_out(model, strategy=strategy, mesh=mesh)
        optimizer_of(training, layout, **own)  # refused now, if its options make no sense
        return Resolved(self, layout, hardware, training, MappingProxyType(own))


@dataclass(frozen=True)
class Resolved:
    """A case turned into a layout, hardware and training.

    `optimizer_options` are the optimizer's own, beside the recipe.
    """

    case: Case
    layout: Layout
    hardware: Hardware
    training: Training
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A folder name that differs between different cases."""
        mesh = str(self.layout.mesh).replace(",", "-").replace("=", "")
        name = f"{self.layout.model.name}-{self.layout.strategy.name}-{mesh}"
        return re.sub(r"[^\w.+-]", "_", name)[:120]

    def make(self, layout: Layout) -> Step:
        """The training step of a layout, as this case wants it trained."""
        return make_step(
            layout,
            optimizer=optimizer_of(self.training, layout, **self.optimizer_options),
            mode=self.case.mode,
            microbatches=self.training.microbatches,
            loss_scale=self.training.loss_scale,
        )

    def compile(self, **how: bool) -> Program:
        """The step, compiled; `how` is `for_speed` and `explains`, as in `compile_step`."""
        return compile_step(self.make(self.layout), hardware=self.hardware, **how)

    def load_data(self) -> Dataset:
        """What the case is trained and tested on."""
        return load_data(self.layout.model, self.case.data)


def load_model(name: str) -> Model:
    """A catalogue model, or the one that `package.module:factory` returns."""
    if ":" not in name:
        return of_catalogue(name)
    module_name, _, factory_name = name.partition(":")
    module = _imported(name, module_name)
    factory = trying(name, "looking it up", lambda: getattr(module, factory_name, None))
    if not callable(factory):
        known = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        raise unknown(f"factory in '{module_name}'", factory_name, known)
    model = trying(name, "its factory", lambda: _without_arguments(name, factory))
    if not isinstance(model, Model):
        raise RequestError(
            f"model '{name}': the factory returned {type(model).__name__}; return what "
            "jaxpar.model(module, loss, batch) makes"
        )
    return model


def _imported(name: str, module_name: str) -> Any:
    """The module of a model's name, looked for in the current folder first."""
    here = ""
    with suppress(OSError):  # the folder may have been deleted
        here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a person's file raises while it is read, exit() too
        what = words_of(error) if isinstance(error, ImportError) else told(error)
        raise OwnCodeError(f"model '{name}': cannot import '{module_name}' ({what})") from error
    finally:
        with suppress(ValueError):  # the file may have taken it away
            sys.path.remove(here)


def _without_arguments(name: str, factory: Callable) -> Any:
    """What `factory()` returns; a RequestError when it has arguments without defaults."""
    required = [
        p.name
        for p in signature(factory).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if iscoroutinefunction(factory):
        raise RequestError(f"model '{name}': its factory is async: make it a plain function")
    if required:
        raise RequestError(
            f"model '{name}': its factory takes arguments ({', '.join(required)}), and is called "
            "without any: give them defaults"
        )
    return factory()


def load_strategy(text: str, **options: Any) -> Strategy:
    """One strategy, or several joined by +; each takes those `options` that it knows."""
    known = strategy_options(text)
    for name in options:
        if name not in known:
            raise unknown(f"option of strategy '{text}'", name, known)
    each = []
    for name in parts(text):
        make = STRATEGIES.load(name)
        usual = {n: p.default for n, p in signature(make).parameters.items()}
        each.append(make(**_typed_options(make, usual, options)))
    return each[0] if len(each) == 1 else combine(*each)


def strategy_options(text: str) -> dict[str, Any]:
    """The options of the strategies named by `text`, each with its usual value."""
    makers = [STRATEGIES.load(part) for part in parts(text)]
    return {p.name: p.default for make in makers for p in signature(make).parameters.values()}


def optimizer_options(name: str) -> dict[str, Any]:
    """The options of an optimizer beside the recipe, each with its usual value."""
    parameters = signature(OPTIMIZERS.load(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def load_data(model: Model, name: str | None) -> Dataset:
    """The data a model is to read: by catalogue name or token file, else its usual."""
    name = model.data if name is None else name
    if isinstance(name, Dataset):
        check_data(model, name)
        return name
    if name is None:
        raise RequestError(f"model '{model.name}' names no usual data: say --data NAME")
    expect(f"the data of model '{model.name}'", name, str, "give a name, a .bin file or a Dataset")
    sizes = {"sequence": model.config.sequence} if hasattr(model.config, "sequence") else {}
    if name.endswith(".bin") or os.path.isdir(name):
        vocabulary = getattr(model.config, "vocabulary", None)
        data = DATA.load("tokens")(name, vocabulary=vocabulary, **sizes)
    elif name in ("tokens", "iterable"):
        raise RequestError(f"data '{name}' is read from a file or from Python: give a .bin path")
    else:
        accepts = {} if name == "digits" else sizes
        data = DATA.load(name)(**accepts)
    check_data(model, data)
    return data


_SAID_IN_THE_MODULE = {
    "compute_dtype": "give its layers dtype=jnp.bfloat16, as Flax's own have it",
    "attention": "attention that cuDNN can fuse is fused wherever it is written, in bfloat16",
    "remat": "wrap its blocks in nnx.remat or nn.remat",
}
"""Fields of the catalogue's decoders, and how a person's own module says the same."""


def _check_fields(
    model: Model, training: Training, changes: dict[str, Any], options: tuple[str, ...]
) -> None:
    """Refuse a change that no record takes; `options` are those of the optimizer and strategy."""
    own = [] if model.config is None else [f.name for f in fields(model.config)]
    for name in changes:
        if model.config is None and name in _SAID_IN_THE_MODULE:
            raise RequestError(
                f"--set {name}: model '{model.name}' is your own and has no fields; "
                f"{_SAID_IN_THE_MODULE[name]}"
            )
        if name not in own:
            known = [*own, *(f.name for f in fields(training)), *options]
            raise unknown(
                f"field of '{model.name}', of training, its optimizer or strategy", name, known
            )


def _typed(record: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes as the kinds of things that a record's fields are; others are refused."""
    kinds = {} if record is None else kinds_of(type(record))
    return {
        name: _set(name, kinds.get(name), getattr(record, name, None), value)
        for name, value in changes.items()
    }


def _typed_options(made_by: Callable, usual: Mapping[str, Any], given: dict[str, Any]) -> dict:
    """The options given to a rule or a strategy, as the kinds of things that they are."""
    kinds = kinds_of(made_by)
    return {n: _set(n, kinds.get(n), usual[n], v) for n, v in given.items() if n in usual}


def _set(name: str, kind: Any, usual: Any, value: Any) -> Any:
    """What `--set name=value` sets, as the kind of thing that it is; counts are not negative."""
    if value is None and kind is str:
        value = "none"  # a word here, as remat=none is
    value = fitting(name, kind, value, usual, "--set ")
    if type(value) is int and type(usual) is int and value < 0:
        raise RequestError(f"--set {name}={value}: {name} is a count; use 0 or more")
    return value
