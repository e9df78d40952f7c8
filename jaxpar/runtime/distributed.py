"""Several processes that run one program: how this one joins the others, and leaves them.

JAX's own multi-controller runtime does the work (NCCL between GPUs, gloo between CPUs). What is
here gives each process its place, and a watchdog that ends all of them if one is lost.
"""

from __future__ import annotations

import platform
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import jax

from jaxpar.core.errors import RequestError, words_of
from jaxpar.core.jax_compat import cluster, coordination
from jaxpar.core.progress import here
from jaxpar.program.configuration import prepare_for_several
from jaxpar.runtime.abort import before_abort, exit_with
from jaxpar.runtime.star import Hub, Spoke
from jaxpar.runtime.watchdog import PATIENCE_SECONDS, Watchdog, Who

HEARTBEAT_SECONDS = 25
"""Without a sign of a process JAX ends the others after this, whatever Python does."""

COLLECTIVE_SECONDS = 55
"""How long a collective on CPUs waits for another process; the watchdog is to speak before."""

ARRIVAL_SECONDS = 300
"""How long a process waits for the others to come at the start."""

VERDICT_SECONDS = 5.0
"""After a collective failed: a peer that is gone is known sooner."""

FOREVER_MS = 7 * 24 * 3_600_000
"""At a barrier the watchdog ends the waiting, if one is lost."""

_LOOPBACK = ("127.0.0.1", "localhost")
_numbers = count()


@dataclass(frozen=True)
class Place:
    """Which of several processes this one is.

    Attributes:
        number, count: which, and of how many.
        coordinator: host:port of process 0; "" to let JAX detect it.
        found_by: the cluster that JAX detected, as it names it; "" for none.
        parent: process that started all of them, and ends them; None where nobody does.
    """

    number: int
    count: int
    coordinator: str = ""
    found_by: str = ""
    parent: int | None = None

    def __str__(self) -> str:
        return f"process {self.number} of {self.count}"


@dataclass(frozen=True)
class Joined:
    """What this process and the others have in common.

    Attributes:
        place: which one this is.
        watchdog: that watches the others.
    """

    place: Place
    watchdog: Watchdog

    def told(self, what: str, said: str) -> list[str]:
        """What every process says of something, in their order; waits for all of them.

        Args:
            what: is asked, as each of them asks it.
            said: by this process.
        """
        keys = f"jaxpar/{next(_numbers)}/{what}"
        client, _ = coordination()
        client.key_value_set(f"{keys}/{self.place.number}", said)
        each = range(self.place.count)
        return [client.blocking_key_value_get(f"{keys}/{n}", FOREVER_MS) for n in each]

    def meet(self) -> None:
        """Wait for every other process to come here."""
        client, _ = coordination()
        client.wait_at_barrier(f"jaxpar/{next(_numbers)}", FOREVER_MS)


def detected() -> Place | None:
    """The place that a cluster gives this process, as JAX detects it; None for one alone."""
    found = cluster()
    if found is None or found[2] < 2:
        return None
    name, number, processes = found
    return Place(number, processes, found_by=name)


_joined: Joined | None = None


def joined() -> Joined | None:
    """What this process has joined; None for one alone."""
    return _joined


def is_abandoned() -> bool:
    """Whether this process ends without the others: JAX would wait for them when Python ends."""
    return _joined is None and coordination()[0] is not None


@contextmanager
def join(
    place: Place, *, program: str = "jaxpar", patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[Joined]:
    """Within, this process is one of several; to be entered before anything starts JAX's devices.

    At the end it waits for the others and leaves. An error is told to them, who end; whoever
    catches it is to end this process too, by `os._exit`.

    Args:
        place: which process this is.
        program: how messages call the command.
        patience_seconds: how long a process may be silent, or behind the others.

    Raises:
        RequestError: where the others cannot be reached.
    """
    global _joined
    _initialize(place, program)
    who = Who(program, place.number, place.count, place.parent)
    watchdog = Watchdog(who, _star(place), patience_seconds)
    watchdog.start()
    _joined = mine = Joined(place, watchdog)
    here.meet = mine.meet
    try:
        here.sharing = mine.told("machine", platform.node()).count(platform.node())
        yield mine
        with here.long_work("waiting for the others to finish"):
            mine.meet()
    except jax.errors.JaxRuntimeError as error:
        # A collective fails where another process is gone: the watchdog knows which.
        watchdog.wait_for_verdict(VERDICT_SECONDS)
        watchdog.end(f"it cannot go on ({words_of(error)[:300]})")
        raise
    except BaseException as error:
        is_request = isinstance(error, RequestError)
        words = str(error) if is_request else f"{type(error).__name__}: {words_of(error)}"
        if isinstance(error, KeyboardInterrupt):
            words = "stopped by a signal"
        watchdog.leave(words[:1000], refused=is_request)
        raise
    else:
        watchdog.leave()
        jax.distributed.shutdown()
    finally:
        here.meet, here.sharing = lambda: None, 1
        _joined = None


def _initialize(place: Place, program: str) -> None:
    """Let JAX join the processes.

    Raises:
        RequestError: where the others cannot be reached.
    """
    prepare_for_several(COLLECTIVE_SECONDS)
    told = {}
    host, _, port = place.coordinator.rpartition(":")
    if place.coordinator:
        told = {
            "coordinator_address": place.coordinator,
            "num_processes": place.count,
            "process_id": place.number,
            "cluster_detection_method": "deactivate",
        }
        if host in _LOOPBACK:
            told["coordinator_bind_address"] = f"127.0.0.1:{port}"
    at = place.coordinator or f"what {place.found_by} gives"
    late = (
        f"cannot join the others at {at}: start all of them within {ARRIVAL_SECONDS // 60} "
        "minutes, with the same --coordinator, which is a host and a free port of process 0's "
        "machine"
    )
    before_abort(lambda: exit_with(f"{program}: {place}: {late}", 2))
    try:
        if place.coordinator and place.number:
            _wait_for(host.strip("[]"), int(port))
        jax.distributed.initialize(
            **told,
            initialization_timeout=ARRIVAL_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        before_abort(None)
        raise RequestError(f"{late} ({words_of(error)[:300]})") from error


def _wait_for(host: str, port: int) -> None:
    """Wait until process 0 listens; JAX would end the process where it does not.

    Raises:
        OSError: it does not.
    """
    until = time.monotonic() + ARRIVAL_SECONDS
    while True:
        try:
            return socket.create_connection((host, port), timeout=10).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _star(place: Place) -> Hub | Spoke:
    """The watchdog's connections: process 0 says where it listens, and the others connect."""
    client, address = coordination()
    host = address.rpartition(":")[0].strip("[]")
    if place.number == 0:
        hub = Hub("127.0.0.1" if host in _LOOPBACK else "", secrets.token_hex(16))
        client.key_value_set("jaxpar/watchdog", f"{hub.port} {hub.token}")
        return hub
    port, token = client.blocking_key_value_get("jaxpar/watchdog", ARRIVAL_SECONDS * 1000).split()
    try:
        return Spoke(host, int(port), token, place.number)
    except OSError as error:
        raise RequestError(
            f"process 0 is reached for JAX and not for the watchdog, on port {port} of {host} "
            f"({words_of(error)}): let the processes reach every port of one another"
        ) from error
