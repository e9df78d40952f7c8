"""An inspection on the screen: collectives, what is not as asked, the schedule, and memory."""

from jaxpar.cli.screen import Screen
from jaxpar.core.figures import bytes_text, place_text
from jaxpar.hardware.record import Hardware
from jaxpar.measures.device_memory import USUAL_FRACTION, DeviceMemory
from jaxpar.measures.inspect import Inspection
from jaxpar.measures.replicated import notable
from jaxpar.schedules.record import Schedule

STAGES_SHOWN = 16
REPLICATED_SHOWN = 12
BLOCKS_SHOWN = 2
"""Lines of a stage before the rest of its ticks is only counted."""
_SYNCHRONISATION = "synchronisation of replicas, not every step"
_NODES = {None: "", False: "inside", True: "between"}
"""Whether a collective stays inside nodes."""


def show_collectives(screen: Screen, inspection: Inspection) -> None:
    """Show the collectives of one step, those of a synchronisation of replicas beside them."""
    groups = ((inspection.collectives, ""), (inspection.averaging, _SYNCHRONISATION))
    rows = [
        [
            row.title,
            " x ".join(row.axes),
            _NODES[row.between_nodes],
            _at_least(f"{row.count:,}", row.exact),
            _at_least(bytes_text(row.bytes), row.exact),
            source or (place_text(row.sources[0]) if row.sources else ""),
        ]
        for group, source in groups
        for row in group
    ]
    head = ["collective", "over axes", "nodes", "count per step", "bytes per device per step"]
    head.append("from")
    if not any(row[2] for row in rows):  # of simulated devices none is known
        head.pop(2)
        rows = [[*row[:2], *row[3:]] for row in rows]
    if rows:
        screen.table(head, rows)
        if inspection.differences:
            screen.say(f"note: {inspection.differences}", style="yellow")
    else:
        screen.say("no collectives")
    averaging = inspection.layout.strategy.averaging
    if inspection.averaging and averaging:
        every = averaging.every
        when = f"every {every} updates" if every else "at the end of training"
        screen.say(
            f"replicas synchronise {when}: {bytes_text(inspection.bytes_per_step)} per device per "
            "step on average"
        )
    for fault in inspection.faults:
        screen.say(fault, style="red")


def show_findings(screen: Screen, inspection: Inspection) -> None:
    """Show where a program does not do what was asked, and what explicit mode left to XLA."""
    places = dict.fromkeys((i.primitive, i.source) for i in inspection.islands)
    for primitive, source in places:
        screen.say(
            f"island: {primitive} at {place_text(source)} has no rule for sharding in types, and "
            "is left to XLA"
        )
    errors = inspection.errors if inspection.is_strict else ()
    for finding in sorted(inspection.lint, key=lambda one: one not in errors):
        cost = f" ({bytes_text(finding.bytes)} per device)" if finding.bytes else ""
        style = "red" if finding in errors else "yellow"
        screen.say(f"finding: {finding.kind}{cost}: {finding}", style=style)
    if inspection.lint:
        count = len(inspection.lint)
        wrong = f"{len(errors) or 'no'} error{'' if len(errors) == 1 else 's'}"
        told = f"{count} finding{'' if count == 1 else 's'}: {wrong}"
        screen.say(told, style="red" if errors else "yellow")


def show_schedule(screen: Screen, inspection: Inspection) -> None:
    """Show what every stage does at every tick, where layers run in stages."""
    schedule = inspection.schedule
    if schedule is None:
        return
    chunks = f" of {schedule.chunks} chunks each" if schedule.chunks > 1 else ""
    screen.say(
        f"schedule {schedule.name}: {schedule.microbatches} microbatches through "
        f"{schedule.stages} stages{chunks} in {schedule.ticks} ticks, bubble fraction "
        f"{schedule.bubble_fraction:.1%}, at most {schedule.peak_in_flight} in-flight microbatches "
        "on a stage"
    )
    _show_ticks(screen, schedule)


def _at_least(figure: str, exact: bool) -> str:
    """A figure, marked where a loop was counted as one turn because nobody knows how many."""
    return figure if exact else f"{figure} or more"


def show_memory(screen: Screen, inspection: Inspection) -> None:
    """Show what the program takes of a device's memory, whether it fits, and what is replicated."""
    memory = inspection.device_memory
    if memory is None:
        return
    parts = {
        "parameters": memory.parameters_bytes,
        "optimizer state": memory.optimizer_state_bytes,
        "model state": memory.model_state_bytes,
        "batch": memory.batch_bytes,
        "temporary": memory.temporary_bytes,
    }
    told = ", ".join(f"{name} {bytes_text(count)}" for name, count in parts.items() if count)
    screen.say(f"memory per device: {bytes_text(memory.total_bytes)} ({told})")
    _show_fit(screen, memory, inspection.target)
    if inspection.residual is not None:
        screen.say(f"note: {inspection.residual}", style="yellow")
    _show_replicated(screen, inspection)


def _show_fit(screen: Screen, memory: DeviceMemory, hardware: Hardware) -> None:
    """Show whether one device of a hardware has as much memory; nothing where that is unknown."""
    if memory.device_bytes is None:
        return
    card = f"the {bytes_text(memory.device_bytes)} of one {hardware.name}"
    share = memory.total_bytes / memory.device_bytes
    if not memory.fits:
        screen.say(
            f"does not fit: {share:.1%} of {card}; use more devices, a smaller --batch, more "
            "--microbatches, or --set remat=full where the model has it",
            style="red",
        )
    elif not memory.fits_as_usual:
        screen.say(
            f"fits: {share:.1%} of {card}, of which JAX takes {USUAL_FRACTION:.0%} unless "
            f"XLA_PYTHON_CLIENT_MEM_FRACTION is set higher",
            style="yellow",
        )
    else:
        screen.say(f"fits: {share:.1%} of {card}", style="green")


def _show_replicated(screen: Screen, inspection: Inspection) -> None:
    """Show which arrays of the state every device has whole, the large ones by name."""
    found = inspection.replicated
    if not found:
        return
    large = notable(found, inspection.layout)
    rows = [[one.path, " x ".join(map(str, one.shape)), bytes_text(one.bytes)]
            for one in large[:REPLICATED_SHOWN]]  # fmt: skip
    total = bytes_text(sum(one.bytes for one in found))
    axes = " x ".join(found[0].axes)
    screen.say(f"replicated over {axes}: {len(found)} arrays of the state, {total} per device")
    if rows:
        screen.table(["replicated", "shape", "bytes per device"], rows)
    if left := len(found) - len(rows):
        rest = bytes_text(sum(one.bytes for one in found if one not in large[:REPLICATED_SHOWN]))
        if rows:
            screen.say(f"and {left} more arrays of the state, {rest} per device", style="dim")


def _show_ticks(screen: Screen, schedule: Schedule) -> None:
    """Draw the table in blocks of as many ticks as fit in a line."""
    one = schedule.picture(slice(0, 1)).splitlines()[-1]
    two = schedule.picture(slice(0, 2)).splitlines()[-1]
    cell = len(two) - len(one)
    in_a_line = max(1, (screen.width - len(one)) // cell + 1)
    shown = min(schedule.ticks, BLOCKS_SHOWN * in_a_line)
    for first in range(0, shown, in_a_line):
        last = min(first + in_a_line, schedule.ticks)
        if schedule.ticks > in_a_line:
            screen.say(f"ticks {first} to {last - 1}", style="dim")
        for line in schedule.picture(slice(first, last)).splitlines()[:STAGES_SHOWN]:
            screen.say(line, style="cyan")
    if schedule.stages > STAGES_SHOWN:
        screen.say(f"and {schedule.stages - STAGES_SHOWN} more stages", style="dim")
    if shown < schedule.ticks:
        screen.say(f"and {schedule.ticks - shown} more ticks", style="dim")
