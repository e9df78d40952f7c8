"""The line that is told is the person's: not a library's, whatever the folders are called."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.extend.source_info_util import current, new_source_info, summarize

import jaxpar
from jaxpar.core.jax_compat import traced_at
from jaxpar.core.source_lines import is_library, is_own, line_of, line_of_error, own_file

ROOT = Path(jaxpar.__file__).parent


def lines(function, *arguments):
    """Each equation's line as we tell it, and as JAX tells it."""
    eqns = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
    assert eqns
    return [(line_of(eqn.source_info), summarize(eqn.source_info)) for eqn in eqns]


class Plain:
    def __call__(self, x):
        return jnp.sin(x) + (
            x  # a line further on than where the sum begins
            * 2.0
        )


def test_a_line_of_ones_own_is_told_as_jax_tells_it():
    """File, line, column and function, in a method, a lambda and a comprehension."""
    for function in (Plain(), lambda x: x * x, lambda x: [a + 1.0 for a in x]):
        for ours, theirs in lines(function, jnp.ones(3)):
            assert ours == theirs
            assert __file__ in ours


def test_where_python_stood_is_innermost_first():
    """The one private thing that is read: this function stands before whoever called it."""
    names = [code.co_name for code, _ in traced_at(current().traceback)]
    here = names.index("test_where_python_stood_is_innermost_first")
    assert names.index("pytest_pyfunc_call") > here
    assert list(traced_at(new_source_info().traceback)) == []
    assert line_of(new_source_info()) == ""


@pytest.mark.parametrize("kind", ["nnx", "linen", "optax"])
def test_a_librarys_own_line_is_passed_over(kind):
    """What Flax's Linear multiplies was asked for by the line that calls it; so with optax."""
    x = jnp.ones((2, 3))
    if kind == "nnx":
        layer = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

        def function(x) -> Any:
            return layer(x)
    elif kind == "linen":
        layer = linen.Dense(3)
        variables = layer.init(jax.random.key(0), x)

        def function(x) -> Any:
            return layer.apply(variables, x)
    else:
        optimizer = optax.adam(0.1)
        state = optimizer.init(x)

        def function(x) -> Any:
            return optimizer.update(x, state)[0]

    library = {"nnx": flax, "linen": flax, "optax": optax}[kind]
    found = lines(function, x)
    assert any(str(Path(str(library.__file__)).parent) in theirs for _, theirs in found)
    assert all("test_source_lines.py" in ours and "function" in ours for ours, _ in found)


def test_jaxpars_own_lines_are_passed_over_and_a_catalogue_models_are_told():
    """A hook stands between a model and JAX; what calls a model stands behind it."""
    hooks, attention = str(ROOT / "core/hooks.py"), str(ROOT / "attention/ring.py")
    model, step = str(ROOT / "models/mlp.py"), str(ROOT / "step/make_step.py")
    assert own_file([jax.__file__, hooks, model, step, __file__]) == 2
    assert own_file([attention, flax.__file__, __file__]) == 2
    # Nobody's model asked for what an optimizer's update does, wherever compile_step was called.
    assert own_file([optax.__file__, step, __file__]) is None
    assert own_file([jax.__file__]) is None


def test_a_file_is_a_librarys_by_its_folder_and_not_by_its_name():
    """A person's project may be called jaxpar or flax; an installed package may hold a model."""
    beside = Path(jax.__file__).parents[1]
    for mine in (
        "/home/me/flax/train.py",
        "/home/me/jaxpar/net.py",
        f"{Path(jax.__file__).parent}_triton/kernel.py",
        f"{beside}/flaxmodels/gpt2.py",
        f"{Path(os.__file__).parent}/site-packages/flaxmodels/gpt2.py",
        "<ipython-input-3-0a1b2c>",
        "<string>",
    ):
        assert is_own(mine), mine
    for other in (
        jax.__file__,
        np.__file__,
        os.__file__,
        f"{beside}/jaxlib/xla_client.py",
        "<frozen importlib._bootstrap>",
    ):
        assert is_library(other) and not is_own(other), other
    assert not is_own(str(ROOT / "step/make_step.py"))


def raised(function):
    with pytest.raises(Exception) as caught:
        function()
    return line_of_error(caught.value)


def module_of(path: Path, text: str):
    """A module with this text, in a file at this place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_error_is_told_by_the_innermost_line_of_ones_own(tmp_path):
    """In a folder of any name; not the library's line that raised it, and not the caller's."""
    for folder in ("flax", "jaxpar", "jax", "project"):
        path = tmp_path / folder / "net.py"
        net = module_of(
            path,
            "import jax.numpy as jnp\n\n\ndef call(x):\n    return jnp.dot(x, jnp.ones(5))\n",
        )
        assert raised(lambda net=net: net.call(jnp.ones(3))) == f"{path}:5"


def test_an_error_inside_an_installed_package_is_told_by_the_line_that_called_it(tmp_path):
    """And by the package's own line where there is no other."""
    path = tmp_path / "site-packages" / "shapes.py"
    package = module_of(path, "def check(x):\n    raise ValueError(x)\n")
    line = sys._getframe().f_lineno + 1
    assert raised(lambda: package.check(1)) == f"{__file__}:{line}"
    try:
        package.check(1)
    except ValueError as error:
        assert error.__traceback__ is not None
        inside = error.with_traceback(error.__traceback__.tb_next)
        assert line_of_error(inside) == f"{path}:2"


def test_an_error_that_passed_no_line_of_ones_own_has_none():
    """Nothing is made up."""
    assert line_of_error(ValueError("never raised")) == ""
