"""A function in n processes of m simulated devices each, and once more in one process of n x m.

A plugin of pytest, by name:

    pytest_plugins = ["jaxpar.testing.multiprocess"]

    def losses(steps):  # at the top of a module: each process imports it
        ...
        return [1.0, 0.5]  # whatever JSON holds

    def test_processes_train_alike(multiprocess):
        result = multiprocess(losses, 3, processes=2, devices=2)
        assert all(value == pytest.approx(result.control) for value in result.values)

In each process `jax.distributed` is joined and `jaxpar.runtime.watchdog` watches the others, so
that a test in which one process dies or stops ends soon, with what each of them said.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jaxpar.core.errors import expect
from jaxpar.core.kinds import whole
from jaxpar.runtime.supervise import Children, Ended, free_port

MOST_PROCESSES, MOST_DEVICES = 16, 64


class ProcessesFailed(AssertionError):
    """A process of a test failed; says which, and what each of them wrote."""


@dataclass(frozen=True)
class Result:
    """What came of a function in several processes.

    Attributes:
        values: what it returned in each process, in their order; None where it did not return.
        control: what it returned in one process with all devices; None where it was not asked for.
        ended: how each process ended.
        logs: what each of them wrote to standard output and standard error.
    """

    values: tuple[Any, ...]
    control: Any
    ended: tuple[Ended, ...]
    logs: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every process ended well."""
        return not any(end.status for end in self.ended)


@dataclass(frozen=True)
class Multiprocess:
    """Runs functions in several processes; call it.

    Attributes:
        folder: where the processes write down what they return.
    """

    folder: Path

    def __call__(
        self,
        function: Callable[..., Any] | str,
        *arguments: Any,
        processes: int = 2,
        devices: int = 2,
        control: bool = True,
        check: bool = True,
        most_seconds: float = 120.0,
        patience_seconds: float = 30.0,
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a function in every process, and wait for all.

        Args:
            function: at the top of a module, or its module:name.
            arguments: given to it, in every process; whatever JSON holds.
            processes: how many.
            devices: simulated CPU devices of each.
            control: whether it is run once more, before, in one process with all devices.
            check: whether a process that fails is an error.
            most_seconds: after which all processes are ended.
            patience_seconds: how long one may be silent before the others end.
            environment: variables beside those of this process.

        Raises:
            ProcessesFailed: if `check`, for a process that failed or took too long.
        """
        whole("processes", processes, least=1, most=MOST_PROCESSES)
        whole("devices", devices, least=1, most=MOST_DEVICES)
        asked = {"function": _named(function), "arguments": arguments, "patience": patience_seconds}
        told = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(environment or {})}

        def run(count: int, each: int) -> Result:
            result = self._run({**asked, "devices": each, "count": count}, told, most_seconds)
            if check and not result.ok:
                raise ProcessesFailed(_report(result))
            return result

        alone = run(1, processes * devices).values[0] if control else None
        several = run(processes, devices)
        return Result(several.values, alone, several.ended, several.logs)

    def _run(self, asked: dict, environment: Mapping[str, str], most_seconds: float) -> Result:
        """What came of one start of all processes."""
        count, coordinator = asked["count"], f"127.0.0.1:{free_port()}"
        files = [self.folder / f"result-{number}-of-{count}.json" for number in range(count)]
        for file in files:
            file.unlink(missing_ok=True)
        commands = []
        for number, file in enumerate(files):
            mine = {"number": number, "coordinator": coordinator, "result": str(file)}
            text = json.dumps({**asked, **mine})
            commands.append((sys.executable, "-m", "jaxpar.testing.child", text))
        logs: dict[int, list[str]] = defaultdict(list)
        children = Children(
            commands,
            lambda number, line: logs[number].append(line),
            environment=environment,
            all_heard=True,
        )
        children.wait(most_seconds)
        return Result(
            tuple(json.loads(f.read_text("utf-8")) if f.exists() else None for f in files),
            None,
            tuple(children.ended[number] for number in range(count)),
            tuple("\n".join(logs[number]) for number in range(count)),
        )


@pytest.fixture
def multiprocess(tmp_path: Path) -> Multiprocess:
    """Runs a function in several processes: see `Multiprocess.__call__`."""
    return Multiprocess(tmp_path)


def _named(function: Callable[..., Any] | str) -> str:
    """The module:name by which another process finds a function."""
    if isinstance(function, str):
        return function
    expect("the function", function, Callable, "give one, or its module:name")
    module, name = function.__module__, function.__qualname__
    if "." in name or getattr(sys.modules[module], name, None) is not function:
        raise ValueError(
            f"{module}:{name} cannot be found by another process: define it at the top of a module"
        )
    return f"{module}:{name}"


def _report(result: Result) -> str:
    """How each process ended, and the end of what it wrote."""
    return "\n".join(
        f"process {number} ended with status {end.status} after {end.seconds:.1f} s"
        f"{', because of another' if end.by_us else ''}:\n{log[-2000:]}"
        for number, (end, log) in enumerate(zip(result.ended, result.logs, strict=True))
    )
