"""An inspection on the screen: collectives, what is not as asked, the schedule, and memory."""

from jaxpar.cli.figures import bytes_text, place_text
from jaxpar.cli.screen import Screen
from jaxpar.hardware.record import Hardware
from jaxpar.measures.inspect import Inspection
from jaxpar.schedules.record import Schedule

STAGES_SHOWN = 16
BLOCKS_SHOWN = 2
"""Lines of a stage before the rest of its ticks is only counted."""
_SYNCHRONISATION = "synchronisation of replicas, not every step"


def show_collectives(screen: Screen, inspection: Inspection) -> None:
    """Show the collectives of one step, those of a synchronisation of replicas beside them."""
    groups = ((inspection.collectives, ""), (inspection.averaging, _SYNCHRONISATION))
    rows = [
        [
            row.kind,
            " x ".join(row.axes),
            f"{row.count:,}",
            bytes_text(row.bytes),
            source or (place_text(row.sources[0]) if row.sources else ""),
        ]
        for group, source in groups
        for row in group
    ]
    head = ["collective", "over axes", "count per step", "bytes per device per step", "from"]
    if rows:
        screen.table(head, rows)
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
    for finding in inspection.lint:
        screen.say(f"{finding.kind}: {finding}", style="red" if inspection.is_strict else "yellow")


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


def show_memory(screen: Screen, inspection: Inspection, hardware: Hardware) -> None:
    """Show what the program takes of a device's memory, and whether it fits."""
    if not inspection.memory:
        return
    total, temporary = (inspection.memory[n] for n in ("total_bytes", "temporary_bytes"))
    screen.say(
        f"memory per device: {bytes_text(total)}, of which {bytes_text(temporary)} are temporary"
    )
    room = hardware.memory_bytes
    if room and total > room:
        screen.say(
            f"that is more than the {bytes_text(room)} of one {hardware.name}: use more devices, a "
            "smaller --batch, or --set remat=full",
            style="red",
        )


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
