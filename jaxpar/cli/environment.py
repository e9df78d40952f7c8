"""What a command finds around it: XLA's flags, and a place for compiled programs."""

import os
import resource
import subprocess
import sys
from pathlib import Path

from jaxpar.cli.options import check_writable
from jaxpar.core.errors import RequestError
from jaxpar.core.jax_compat import READ_XLA_FLAGS

LEAST_ADDRESSES_BYTES = 2_700_000_000
"""That a small step needs: with 2.3e9 some end in an abort, with 2.7e9 none did (jax 0.10.2)."""

_FOLDERS = ("JAX_DUMP_IR_TO", "JAX_COMPILATION_CACHE_DIR")
"""Variables that name a folder for JAX to write to."""


def check_environment() -> None:
    """Refuse settings of JAX that no step can be made under, and flags that XLA does not know.

    XLA would end the process for such a flag, in the middle; so flags are tried in a process of
    their own, where there are any.
    """
    from jaxpar.program.configuration import refuse_settings

    refuse_settings()
    most_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    if resource.RLIM_INFINITY != most_bytes < LEAST_ADDRESSES_BYTES:
        raise RequestError(
            f"a process may have {most_bytes / 1e9:.1f} GB of addresses here, and JAX ends the "
            f"process where it is given less than about {LEAST_ADDRESSES_BYTES / 1e9:.1f} GB: "
            "raise the limit (ulimit -v)"
        )
    for name in _FOLDERS:
        folder = os.environ.get(name)
        if folder and "://" not in folder:  # a bucket is not looked at
            check_writable(Path(folder) / "a file", f"{name}:")
    if not os.environ.get("COLUMNS", "0").strip("0"):
        os.environ.pop("COLUMNS", None)  # 0 is what shells say that do not know it
    flags = os.environ.get("XLA_FLAGS")
    if not flags:
        return
    tried = subprocess.run(
        [sys.executable, "-c", READ_XLA_FLAGS], capture_output=True, text=True, errors="replace"
    )
    if tried.returncode:
        # "F1126 00:46:16.07 8056 parse_flags_from_env.cc:234] Unknown flag in XLA_FLAGS: --a --b"
        said = [line for line in tried.stderr.splitlines() if "flag" in line.lower()]
        reason = said[0].rpartition("] ")[2][:300] if said else "it says no more"
        raise RequestError(
            f"XLA_FLAGS={flags}: XLA cannot read this variable ({reason}): unset it, or repair it"
        )


def cache_folder(name: str = "compiled") -> Path | None:
    """Where things of this name are kept: in the user's cache folder; None where there is none."""
    named, home = os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME")
    root = Path(named) if named else Path(home or "", ".cache")
    folder = root / "jaxpar" / name
    if not folder.is_absolute():
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home, or one that is not this person's
        return None
    return folder if os.access(folder, os.W_OK) else None
