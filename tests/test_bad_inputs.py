"""One sentence, exit 2, nothing half-written: what a person can give, by kind.

The kinds of the command line that need no program are in `test_runner`; here are numbers that no
machine counts, files that are none, factories that do anything, and Python's own words.
"""

import datetime
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from small import needs_gpu_compiler

import jaxpar
from jaxpar.case import Case
from jaxpar.cli.main import execute
from jaxpar.core.errors import LONGEST_SENTENCE, RequestError, expect, sizes_that_work, words_of
from jaxpar.core.kinds import fitting
from jaxpar.data import iterable, tokens
from jaxpar.inference.example import read_example
from jaxpar.program.compiled import compiled

pytestmark = pytest.mark.usefixtures("own_folder")
ON_TWO = ["--strategy", "data", "--mesh", "data=2"]


def _without_address(value) -> str:
    """What names a value in every process alike."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def refused(argv, capsys) -> str:
    """The one sentence that `argv` is refused with: exit 2, nothing printed, nothing written."""
    before = sorted(p for p in Path().rglob("*") if p.suffix not in (".pyc", ""))
    assert execute(argv, program="jaxpar") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("jaxpar: "), (out, err)
    assert len(err) < LONGEST_SENTENCE + 100 and err.strip().isprintable()
    assert sorted(p for p in Path().rglob("*") if p.suffix not in (".pyc", "")) == before
    return err


HUGE = "9" * 5000
NUMBERS = {
    "mlp": """seed=4294967296 seed=none seed=1.5 steps=100000000000000000000 steps=none
        steps=4294967295 warmup=1.5 warmup=abc warmup=true warmup=[1] learning_rate=none
        learning_rate=1e400 clip=none decay=none optimizer=none b1=none b2=none microbatches=none
        loss_scale=none evaluate_every=none batch=abc batch=1.5 batch=none batch=[2] batch={}
        batch=true batch=99999999999999999999 width=none width=99999999999999999999999 width={[]:1}
        width=1if hidden=none hidden=100000 dropout=nan dropout=none width=1+'a'
        learning_rate=1e39 weight_decay=1e-40 warmup=2147483648""".split(),
    "transformer": """kv_heads=two kv_heads=1.5 kv_heads=true head_dim=7 head_dim=two remat=3
        rope_base=0 rope_base=-1 rope_base=none rope_base=1e400 norm_epsilon=-1 activation=none
        compute_dtype=3 compute_dtype=int32 compute_dtype=float64 rope_base=1e-300
        gated=3 gated=none unroll=none vocabulary=4000000000 layers=none""".split(),
    "moe": "capacity=none capacity=1e400 balance=-1 active=none experts=1.5".split(),
}


@pytest.mark.parametrize(("model", "said"), [(m, s) for m, every in NUMBERS.items() for s in every])
def test_a_setting_of_another_kind_or_size_is_refused(model, said, capsys):
    """Numbers out of range, fractions for counts, words for numbers, none where one must be."""
    err = refused(["train", model, *ON_TWO, "--set", said], capsys)
    assert said.partition("=")[0] in err


@pytest.mark.parametrize(
    "said", [f"width={HUGE}", "width=" + "(" * 9000, "x" * 9000, r"width='\d'"]
)
def test_a_setting_that_cannot_be_read_is_shortened_and_refused(said, capsys):
    """Python's own reader has limits, and warnings."""
    refused(["train", "mlp", *ON_TWO, "--set", said], capsys)


REPEATED = [
    ["--set", "width=32", "--set", "width=64"],
    ["--steps", "3", "--set", "steps=4"],
    ["--nojson=3"],
    ["--picture", "x.png"],
    ["--data", ""],
    ["--mode", ""],
    ["--out", " "],
    ["--json=3"],
    ["--undefok=steps"],
    ["--flagfile", "/dev/null"],
    ["--out", "x.svg", "--picture", "x.svg"],
    ["--help", "--set", "optimizer=[1]"],
]


@pytest.mark.parametrize("options", REPEATED, ids=" ".join)
def test_an_option_that_contradicts_or_says_nothing_is_refused(options, capsys):
    """Who types a thing twice means one of the two."""
    refused(["train", "mlp", *ON_TWO, *options], capsys)


MESHES = ["data=²", "data=+-2", "data=2=3", "data=1e3", "2x4", "data:2", f"data={HUGE}", "data=0x2",
          "data=two", "dat\x1b[31ma=2", "data=2;model=2", "=2", ",", "",
          "data=2," * 9000]  # fmt: skip


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_in_an_odd_spelling_is_refused(mesh, capsys):
    """As is one of a number that only Unicode takes for a digit."""
    refused(["inspect", "mlp", "--mesh", mesh], capsys)


@pytest.mark.parametrize("mesh", ["data=1000000", "data=1000,model=1000"])
def test_a_mesh_of_a_million_devices_is_refused_with_the_limit(mesh, capsys):
    """At once, on described hardware too."""
    assert "65,536" in refused(["inspect", "mlp", "--hardware", "h100", "--mesh", mesh], capsys)


def test_the_nearest_sizes_of_a_large_dim_are_found_without_counting_to_it():
    """Once every number up to the size was tried."""
    assert sizes_that_work(2 * 10**17 + 2, 4) == (
        "2 or 11 devices divide it, and 4 divides 200000000000000000 and 200000000000000004"
    )


FACTORIES = {
    "exits": ("sys.exit(3)", "SystemExit.*3"),
    "recurses": ("return f()", "RecursionError"),
    "unprintable": ("raise Unprintable", "cannot be printed"),
    "no exception": ("raise Base('why')", "Base.*why"),
    "many lines": (r"raise ValueError('a\nb\x1b[31m')", "ValueError.*: a"),
    "long": ("raise ValueError('x' * 100_000)", "more"),
    "long line": ("raise ValueError('x y ' * 100_000)", "more"),
    "nothing": ("pass", "returned NoneType"),
    "an odd name": (r"raise KeyError('\udc80')", "udc80"),
}
HEAD = """import sys
class Unprintable(Exception):
    def __str__(self): raise RuntimeError
class Base(BaseException): pass
"""


@pytest.mark.parametrize("name", FACTORIES)
def test_a_factory_may_do_anything(name, capsys, monkeypatch):
    """Whatever it raises is one sentence with its line; so is what its module raises."""
    line, sentence = FACTORIES[name]
    Path("mine.py").write_text(f"{HEAD}def f():\n    {line}\n")
    Path("at_once.py").write_text(f"{HEAD}f = 3\n{line}\n" if "f()" not in line else HEAD + "1/0")
    for module in ("mine", "at_once"):
        monkeypatch.delitem(sys.modules, module, raising=False)
        err = refused(["inspect", f"{module}:f", *ON_TWO], capsys)
        assert f"'{module}:f'" in err or "unknown factory" in err
        if module == "mine":
            assert re.search(sentence, err), err


def test_the_traceback_of_own_code_is_shown_where_it_is_asked_for(capsys, monkeypatch):
    """Whoever debugs a factory or a loss needs its lines; who mistypes an option does not."""
    Path("mine.py").write_text(
        "import jaxpar, numpy as np\nfrom flax import nnx\n"
        "def deep(): raise KeyError('why')\n"
        "def loss(net, batch): deep()\n"
        "def f(): return jaxpar.model(lambda rngs: nnx.Linear(3, 3, rngs=rngs), loss, "
        "{'x': np.ones((4, 3))})\n"
        "def g(): deep()\n"
    )
    for factory, frames in (("g", ["g", "deep"]), ("f", ["loss", "deep"])):
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        said = refused(["inspect", f"mine:{factory}", *ON_TWO], capsys)
        assert said.endswith("mine.py:3): 'why'; --traceback shows where\n"), said
        assert (
            execute(["inspect", f"mine:{factory}", *ON_TWO, "--traceback"], program="jaxpar") == 2
        )
        *lines, last = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("Traceback") and said.startswith(last + ";")
        assert re.findall(r'mine.py", line \d+, in (\w+)', "\n".join(lines)) == frames
    assert "--traceback" not in refused(["inspect", "mlp", *ON_TWO, "--set", "width=x"], capsys)


def test_own_code_that_raises_after_the_door_is_told_too(capsys, monkeypatch):
    """A loss is called again, for other rows or by `verify`; a bug of ours shows."""
    Path("mine.py").write_text(
        "import jaxpar, numpy as np\nfrom flax import nnx\n"
        "def loss(net, batch):\n"
        "    assert len(batch['x']) == 4, 'wants 4 rows'\n"
        "    return net(batch['x']).mean()\n"
        "def f(): return jaxpar.model(lambda rngs: nnx.Linear(3, 3, rngs=rngs), loss, "
        "{'x': np.ones((4, 3))})\n"
    )
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    said = refused(["inspect", "mine:f", *ON_TWO, "--batch", "8"], capsys)
    assert said.endswith("mine.py:4): wants 4 rows; --traceback shows where\n"), said
    monkeypatch.setattr("jaxpar.case.lay_out", None)
    with pytest.raises(TypeError):
        execute(["inspect", "mlp", *ON_TWO], program="jaxpar")


PLACES = {
    "a file": (lambda: Path("p").write_text("mine"), "p"),
    "in a file": (lambda: Path("p").write_text("mine"), "p/q"),
    "a device": (lambda: None, "/dev/full"),
    "a loop": (lambda: os.symlink("p", "p"), "p"),
    "nowhere": (lambda: None, "/proc/nosuch"),
    "a name too long": (lambda: None, "x" * 5000),
    "a zero byte": (lambda: None, "a\0b"),
}
TAKEN = {
    "a full disk": lambda: os.symlink("/dev/full", "p/metrics.jsonl"),
    "a pipe": lambda: os.mkfifo("p/metrics.jsonl"),
    "a folder": lambda: Path("p/metrics.jsonl").mkdir(),
    "a link to nowhere": lambda: os.symlink("no/where", "p/metrics.jsonl"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(name, capsys, monkeypatch):
    """For metrics and for a picture: nothing is compiled, let alone trained."""
    monkeypatch.setattr("jaxpar.case.Resolved.compile", None)
    make, place = PLACES[name]
    make()
    refused(["train", "mlp", *ON_TWO, "--out", place], capsys)
    assert "--picture" in refused(["list", "--picture", f"{place}/x.svg"], capsys)


@pytest.mark.parametrize("weights", ["nosuch", "empty", "/dev/zero", "x" * 5000, "other"])
def test_weights_that_are_none_are_refused_before_the_work(weights, capsys, monkeypatch):
    """Compiling takes minutes, and their shapes are known without it."""
    monkeypatch.setattr("jaxpar.cli.verbs.train.compile_step", None)
    Path("empty").mkdir()
    with ocp.StandardCheckpointer() as writer:
        writer.save(Path("other").absolute(), {"w": np.ones(3)})
    said = refused(["train", "mlp", *ON_TWO, "--weights", weights], capsys)
    assert said.startswith(f"jaxpar: {'checkpoint' if weights[0] in 'xo' else 'weights'}")


@pytest.mark.parametrize(
    "options",
    ["--timeline x.svg --picture ./x.svg", "--hardware h.json --timeline h.json",
     "--plan p.json --timeline p.json", "--timeline a.html --report a.html"],
)  # fmt: skip
def test_one_file_in_two_options_is_refused(options, capsys, monkeypatch):
    """What is written would take the place of what was read, or written before."""
    monkeypatch.setattr("jaxpar.case.Case.resolve", None)
    Path("h.json").write_text('{"like": "h100"}')
    plan = {"plan": 1, "model": "mlp", "strategy": "data", "mesh": "data=2", "mode": "auto"}
    Path("p.json").write_text(json.dumps({**plan, "set": {}}))
    assert "name two different files" in refused(["predict", "mlp", *options.split()], capsys)


@pytest.mark.parametrize("name", TAKEN)
def test_a_file_whose_place_is_taken_is_refused_before_the_work(name, capsys, monkeypatch):
    """A pipe would be waited for, and a full disk be met after the first step."""
    monkeypatch.setattr("jaxpar.case.Resolved.compile", None)
    Path("p").mkdir()
    TAKEN[name]()
    refused(["train", "mlp", *ON_TWO, "--out", "p"], capsys)


IDS = (np.arange(2000) % 256).astype("<u2")
FILES = {
    "a pipe": lambda: os.mkfifo("x.bin"),
    "a device": lambda: os.symlink("/dev/zero", "x.bin"),
    "a folder": lambda: Path("x.bin").mkdir(),
    "a loop": lambda: os.symlink("x.bin", "x.bin"),
    "a link to nothing": lambda: os.symlink("nosuch", "x.bin"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_token_file_that_is_none_is_refused(name):
    """A pipe would be waited for."""
    FILES[name]()
    with pytest.raises(RequestError, match=r"x\.bin"):
        tokens.dataset("x.bin")


@pytest.mark.parametrize("path", [3, None, "x" * 5000 + ".bin", "\0.bin"])
def test_what_is_no_path_is_refused(path):
    """In Python."""
    with pytest.raises(RequestError):
        tokens.dataset(path)


def test_a_token_file_that_shrinks_is_refused_when_it_is_read():
    """A mapped file would end the process by SIGBUS."""
    IDS.tofile("x.bin")
    data = tokens.dataset("x.bin", sequence=8)
    os.truncate("x.bin", 100)
    with pytest.raises(RequestError, match="was longer when it was opened"):
        data.batch(0, size=64)
    with pytest.raises(RequestError, match="was longer when it was opened"):
        list(data.evaluation(size=4))


BATCHES = [
    *(3, None, "abc", [3], [{}], [{"x": 3}], [None], lambda x: [], lambda: 3, iter([])),
    *([{"x": np.ones(())}], [{"x": np.ones((0, 4))}], [{3: np.ones((3, 4))}]),
    *([{"x": np.array(["a"])}], [{"x": np.array(["2020-01-01"], "M8[D]")}]),
]


@pytest.mark.parametrize("batches", BATCHES, ids=_without_address)
def test_batches_that_are_none_are_refused(batches):
    """Strings, dates, no rows, no fields, no dictionary, no iterable."""
    with pytest.raises(RequestError):
        iterable.dataset(batches, vocabulary=3)


EXAMPLES = [np.array(["a"]), np.array([datetime.date(2020, 1, 1)]), np.array(["2020"], "M8[Y]"),
            np.array([3], "m8[s]"), np.ones((0, 4)), np.ones(()), None, b"abc", object(),
            np.zeros(3, [("a", "i4")])]  # fmt: skip


@pytest.mark.parametrize("x", EXAMPLES, ids=_without_address)
def test_an_example_that_holds_no_numbers_is_refused(x):
    """As of batches; bfloat16, which numpy takes for bytes, is a number."""
    with pytest.raises(RequestError):
        read_example("net", {"x": x})
    read_example("net", {"x": jnp.ones(3, jnp.bfloat16)})


def test_words_stand_for_records():
    """A strategy, a mesh and hardware by their names; a mesh of JAX's is its sizes."""
    model = jaxpar.MODELS.load("mlp")(width=32)
    said = jaxpar.lay_out(model, strategy="fsdp+tensor", mesh="data=4,model=2")
    shape = jaxpar.MeshShape(data=4, model=2)
    assert said.mesh == shape and said.strategy.name == "fsdp+tensor"
    devices = np.array(jax.devices()[:8]).reshape(4, 2)
    for mesh in (jax.sharding.Mesh(devices, ("data", "model")), {"data": 4, "model": 2}, shape):
        assert jaxpar.lay_out(model, strategy="hybrid", mesh=mesh).mesh == shape
    step = jaxpar.make_step(said)
    assert jaxpar.compile_step(step, hardware="cpu", for_speed=False).hardware.name == "cpu"
    words: Any = shape
    assert Case("mlp", mesh=words).mesh == "data=4,model=2"


def laid_out(**other):
    """What lays out the perceptron, but for this."""
    usual = {"model": jaxpar.MODELS.load("mlp")(), "strategy": "data", "mesh": "data=2"} | other
    return jaxpar.lay_out(usual.pop("model"), **usual)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


NONE_OF_THESE = (3, None, object(), [], lambda: 3, int)
RECORDS = [
    *(("model", it) for it in (*NONE_OF_THESE, Net(), Net, "mlp", nnx.Linear)),
    *(("strategy", it) for it in (*NONE_OF_THESE, "", "nosuch", "data+")),
    *(("mesh", it) for it in (*NONE_OF_THESE, "data", {"data": "2"}, {"data": True}, {3: 2})),
]


@pytest.mark.parametrize(("name", "given"), RECORDS)
def test_what_is_no_record_and_no_word_is_refused_with_how_to_make_it(name, given):
    """A Flax module given where a Model is wanted, a number for a mesh."""
    with pytest.raises(RequestError):
        laid_out(**{name: given})


@pytest.mark.parametrize("given", [*NONE_OF_THESE, "nosuch", ""])
def test_hardware_that_is_none_is_refused(given):
    """And a layout or a model where a step is wanted."""
    step = jaxpar.make_step(laid_out())
    with pytest.raises(RequestError):
        jaxpar.compile_step(step, hardware=given)
    with pytest.raises(RequestError, match="make_step"):
        jaxpar.compile_step(given, hardware="cpu")
    with pytest.raises(RequestError, match="compile_step"):
        jaxpar.inspect(given)


@pytest.mark.parametrize(
    "words",
    [{"set": 3}, {"set": {3: 4}}, {"mesh": 3}, {"strategy": 3}, {"mode": 3}, {"hardware": 3}],
)
def test_a_case_is_said_in_words(words):
    """In Python too."""
    with pytest.raises(RequestError):
        Case("mlp", **words)
    with pytest.raises(RequestError, match="jaxpar.model"):
        net: Any = Net
        Case(net)


def test_a_program_beyond_what_xla_counts_or_memory_holds_is_refused(capsys):
    """XLA ends the process for the one, and the system for the other."""
    at = ["inspect", "transformer", *ON_TWO, "--set", "sequence=1000000000"]
    assert "more bytes than 64 bits count" in refused(at, capsys)
    at = ["train", "mlp", *ON_TWO, "--set", "width=1000000", "--set", "hidden=2"]
    assert "this machine has" in refused(at, capsys)
    assert "this machine has" in refused(["verify", *at[1:]], capsys)


@needs_gpu_compiler
def test_a_described_program_that_is_too_large_is_told_in_our_words_alone(capfd):
    """That XLA cannot make it fit stands below the table, and what it refuses in a sentence."""
    at = ["--strategy", "single", "--mesh", "data=1", "--hardware", "h100"]
    assert execute(["inspect", "mlp", *at, "--set", "width=200000"], program="jaxpar") == 1
    out, err = capfd.readouterr()
    assert err == "" and "does not fit: " in out and "of the 84.94 GB of one h100; use more" in out
    huge = ["inspect", "transformer", *at, "--batch", "1", "--set", "sequence=100000000"]
    assert execute(huge, program="jaxpar") == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and err.startswith("jaxpar: XLA cannot compile model 'transformer'")


def test_whatever_xla_cannot_compile_is_a_sentence(monkeypatch):
    """Its bindings raise errors of Python's own too, as of a size beyond 32 bits."""
    lowered: Any = jax.jit(jnp.sin).lower(1.0)

    def compile(options):
        raise RuntimeError("Bad StatusOr access: Invalid dimension size -397934592")

    monkeypatch.setattr(lowered, "compile", compile)
    with pytest.raises(RequestError, match="cannot compile model 'm' .* dimension size -397934592"):
        compiled(lowered, None, "m", "h100")


def test_kinds_are_those_of_the_annotations():
    """Numbers of numpy's are numbers, true is no number, and other annotations take anything."""
    assert fitting("n", int, np.int64(3)) == 3 and type(fitting("n", int, np.int64(3))) is int
    assert fitting("r", float, 1) == 1.0 and fitting("n", int | None, None) is None
    assert fitting("f", bool, True) is True and fitting("t", tuple, "anything") == "anything"
    for kind, value in ((int, True), (float, True), (bool, 1), (str, 3), (int, None), (int, "3")):
        with pytest.raises(RequestError):
            fitting("n", kind, value)


def test_an_error_is_one_line_that_can_be_shown():
    """Whatever is quoted in it."""
    said = str(RequestError("a\n\tb \x1b[0m \udc80 " + "y" * 1000 + " z" * 10_000))
    assert said.startswith(r"a b \x1b[0m \udc80 yyyy") and said.isprintable()
    assert len(said) < LONGEST_SENTENCE + 30
    assert words_of(ValueError()) == "ValueError"
    with pytest.raises(RequestError, match="x is of type int: y"):
        expect("x", 3, str, "y")


LOSSES = {
    "complex": (lambda net, b: (net(b["x"]) * 1j).mean(), "a number of dtype complex64"),
    "boolean": (lambda net, b: (net(b["x"]) > 0).all(), "a number of dtype bool"),
    "integer": (lambda net, b: (net(b["x"]) > 0).sum(), "a number of dtype int32"),
    "vector": (lambda net, b: net(b["x"]).mean(0), r"an array of shape \(4,\)"),
    "none": (lambda net, b: None, "a NoneType"),
    "text": (lambda net, b: "0.3", "a str"),
    "vector metric": (lambda net, b: (net(b["x"]).mean(), {"all": net(b["x"])}), "metric 'all'"),
    "text metric": (lambda net, b: (net(b["x"]).mean(), {"a": "b"}), "metric 'a' is a str"),
    "complex metric": (lambda net, b: (net(b["x"]).mean(), {"z": 1j}), "metric 'z' is"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_or_metric_that_is_no_real_number_is_refused(name):
    """With what it is and what it should be."""
    loss, said = LOSSES[name]
    x = np.ones((4, 3), "float32")
    with pytest.raises(RequestError, match=said):
        jaxpar.model(lambda rngs: nnx.Linear(3, 4, rngs=rngs), loss, {"x": x})


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "adam"},
        {"optimizer": 3},
        {"microbatches": "2"},
        {"microbatches": 1.5},
        {"microbatches": 0},
        {"loss_scale": "x"},
        {"mode": "atuo"},
    ],
    ids=str,
)
def test_a_step_of_wrong_things_is_refused(wrong):
    """One sentence each, and so for a layout that is none."""
    layout, word = laid_out(), cast(Any, "fsdp")
    with pytest.raises(RequestError):
        jaxpar.make_step(layout, **wrong)
    with pytest.raises(RequestError, match="make_step's layout is of type str"):
        jaxpar.make_step(word)


@pytest.mark.parametrize("wrong", [{"hardware": 3}, {"steps": 0}, {"steps": "x"}, {"seed": -1}])
def test_a_verification_of_wrong_things_is_refused(wrong):
    """Words stand for hardware."""
    with pytest.raises(RequestError):
        jaxpar.verify(laid_out(), **{"hardware": "cpu", **wrong})
    with pytest.raises(RequestError, match="verify's layout is of type int"):
        jaxpar.verify(cast(Any, 3), hardware="cpu")


def test_an_error_of_own_data_in_the_middle_has_its_traceback_too(capsys, monkeypatch):
    """What was trained is told; the error is the person's."""

    def broken(step, *more):
        if step:
            raise ZeroDivisionError("mine")
        return digits.draw(step, *more)

    digits = jaxpar.DATA.load("digits")()
    data = replace(digits, draw=broken)
    monkeypatch.setattr("jaxpar.case.Resolved.load_data", lambda self: data)
    line = ["train", "mlp", *ON_TWO, "--set", "width=16", "--set", "hidden=1", "--steps", "3"]
    assert execute(line, program="jaxpar") == 1
    out, err = capsys.readouterr()
    said = "training stopped after step 1 of 3 (data 'digits', step 1: it raised ZeroDivisionError"
    assert said in out and "--traceback shows where" in out and err == ""
    assert execute([*line, "--traceback"], program="jaxpar") == 1
    assert ", in broken" in capsys.readouterr().err
