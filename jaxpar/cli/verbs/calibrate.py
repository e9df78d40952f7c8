"""Measure this machine's devices, and write them as hardware: calibrate --hardware local

The file is then `--hardware FILE.json`, for predict, search, scale and inspect. Another, here.json,
is these very devices: `run compare_prediction --hardware here.json` predicts steps and times them.
"""

import json
import time

from jaxpar.cli.files import unused
from jaxpar.cli.options import Options, make_folder
from jaxpar.cli.screen import Screen
from jaxpar.core.errors import RequestError
from jaxpar.core.figures import bytes_text, flops_text, seconds_text
from jaxpar.hardware.own import hardware_of
from jaxpar.program.devices import local_devices

TAKES = ""
READS = ("hardware", "rounds", "out")


def verb(options: Options, screen: Screen) -> int:
    """Calibrate; the file is read again before it is said to be there."""
    from jaxpar.runtime.calibration import calibrated

    started = time.perf_counter()
    if options.hardware not in ("local", "cpu"):
        raise RequestError(
            f"--hardware {options.hardware}: calibrate measures what is here: use local, or cpu"
        )
    if options.rounds < 1:
        raise RequestError(f"--rounds {options.rounds}: measure once at least")
    here = hardware_of(options.hardware)
    if here.kind == "local":
        local_devices(here)
    file = unused(options.file("calibrate", "hardware.json"))
    record = calibrated(
        repeats=options.rounds,
        watch=lambda what, seconds: screen.say(f"  {what}: {seconds_text(seconds)}"),
    )
    make_folder(file)
    own = file.with_name("here.json")
    of_here = {**record, "name": f"{record['name']}_here", "here": options.hardware}
    for one, told in ((file, record), (own, of_here)):
        one.write_text(json.dumps(told, indent=1) + "\n")
        screen.files.append(one)
    hardware = hardware_of(str(file))
    rates, reached = hardware.rates, hardware.reached
    assert rates is not None and reached is not None
    best = reached.products * rates.flops_per_second["bfloat16"]
    memory = reached.memory * rates.memory_bytes_per_second
    screen.say(
        f"{hardware.name}: products of bfloat16 {flops_text(best)}/s, of which "
        f"{reached.sustained:.0%} in steps that last; memory {bytes_text(memory)}/s",
        style="bold",
    )
    screen.say(f"hardware: {file}; --hardware {file} predicts for it")
    screen.say(f"these devices: {own}; run compare_prediction --hardware {own} times steps on them")
    screen.finish(
        {**record, "file": str(file), "here": str(own), "seconds": time.perf_counter() - started}
    )
    return 0
