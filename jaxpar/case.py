"""A Case: one model under one layout, in words, and resolved into the stream's values.

The command line, experiments and notebooks all ask in these words. Every refusal is
a RequestError and comes before anything is compiled.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxpar.core.catalogue import DATA, HARDWARE, MODELS, MODES, OPTIMIZERS, STRATEGIES
from jaxpar.core.errors import RequestError, unknown
from jaxpar.core.mesh import MeshShape
from jaxpar.data.record import Dataset
from jaxpar.hardware.record import Hardware
from jaxpar.inference.calling import trying
from jaxpar.layout.lay_out import lay_out
from jaxpar.layout.record import Layout
from jaxpar.models.record import Model
from jaxpar.program.configuration import quiet_start
from jaxpar.program.devices import prepare
from jaxpar.program.record import Program, compile_step
from jaxpar.runtime.train import Training, check_data, optimizer_of, set_fields
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
        hardware: a catalogue name.
        mode: auto or manual.
        data: a catalogue name, a token file, or None for the model's usual.
        set: by name, fields of the model or of training, options of the optimizer or of the
            strategy, and `batch`.
    """

    model: str
    strategy: str = "hybrid"
    mesh: str | None = None
    hardware: str = "cpu"
    mode: str = "auto"
    data: str | None = None
    set: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "set", MappingProxyType(dict(self.set)))

    def resolve(self) -> "Resolved":
        """The model laid out, the hardware found, the training read; nothing compiled yet."""
        changes = dict(self.set)
        batch = changes.pop("batch", None)
        training, changes = set_fields(Training(), _typed(Training(), changes))
        hardware = HARDWARE.load(self.hardware)()
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
        own = {n: _typed_option(n, rule[n], changes.pop(n)) for n in list(changes) if n in rule}
        _check_fields(model, training, changes, (*rule, *options))
        model = model.with_fields(**_typed(model.config, changes))
        if batch is not None:
            model = model.with_batch_size(batch)
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
        return f"{self.layout.model.name}-{self.layout.strategy.name}-{mesh}"

    def make(self, layout: Layout) -> Step:
        """The training step of a layout, as this case wants it trained."""
        return make_step(
            layout,
            optimizer=optimizer_of(self.training, layout, **self.optimizer_options),
            mode=self.case.mode,
            microbatches=self.training.microbatches,
            loss_scale=self.training.loss_scale,
        )

    def compile(self, *, for_speed: bool = True) -> Program:
        """The step, compiled; `for_speed` as in `compile_step`."""
        step = self.make(self.layout)
        return compile_step(step, hardware=self.hardware, for_speed=for_speed)

    def load_data(self) -> Dataset:
        """What the case is trained and tested on."""
        return load_data(self.layout.model, self.case.data)


def load_model(name: str) -> Model:
    """A catalogue model, or the one that `package.module:factory` returns."""
    if ":" not in name:
        return MODELS.load(name)()
    module_name, _, factory_name = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a person's file raises while it is read
        what = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise RequestError(f"model '{name}': cannot import '{module_name}' ({what})") from error
    finally:
        sys.path.pop(0)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        known = [n for n in vars(module) if callable(getattr(module, n)) and n[0] != "_"]
        raise unknown(f"factory in '{module_name}'", factory_name, known)
    model = trying(name, "its factory", lambda: _without_arguments(name, factory))
    if not isinstance(model, Model):
        raise RequestError(
            f"model '{name}': the factory returned {type(model).__name__}; return what "
            "jaxpar.model(module, loss, batch) makes"
        )
    return model


def _without_arguments(name: str, factory: Callable) -> Any:
    """What `factory()` returns; a RequestError when it has arguments without defaults."""
    required = [
        p.name
        for p in signature(factory).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
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
        own = {n: p.default for n, p in signature(make).parameters.items()}
        given = {n: _typed_option(n, own[n], v) for n, v in options.items() if n in own}
        each.append(make(**given))
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
    name = name or model.data
    if isinstance(name, Dataset):
        check_data(model, name)
        return name
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


_SAID_IN_THE_MODULE = {
    "compute_dtype": "give its layers dtype=jnp.bfloat16, as Flax's own have it",
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
    """Refuse a value of another kind than the field's: text for a number, or 1.5 for a count."""
    return {n: _typed_option(n, getattr(record, n, None), v) for n, v in changes.items()}


def _typed_option(name: str, usual: Any, value: Any) -> Any:
    """`value` as the kind of thing that `usual` is; a default of None takes anything."""
    if usual is None or value is None:
        return value
    fits = type(value) is type(usual) or (isinstance(usual, float) and type(value) is int)
    if not fits:
        raise RequestError(
            f"--set {name}={value}: {name} is {_kind(usual)} (its default is {usual}), and "
            f"'{value}' is not"
        )
    if type(usual) is int and value < 0:
        raise RequestError(f"--set {name}={value}: {name} is a count; use 0 or more")
    return type(usual)(value)


def _kind(value: Any) -> str:
    """The type of a setting's usual value, for people: "a whole number"."""
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(
        type(value), "a word"
    )
