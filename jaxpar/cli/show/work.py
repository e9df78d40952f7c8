"""Work on the screen: what a step computes and communicates per device, and how long at least."""

from jaxpar.cli.screen import Screen
from jaxpar.core.figures import bytes_text, flops_text, seconds_text
from jaxpar.core.mesh import sizes_of
from jaxpar.measures.inspect import Inspection

HEAD = ["of a step", "per device per step", "takes at least"]


def show_work(screen: Screen, inspection: Inspection) -> None:
    """Show the work and the communication of a step, and the bounds that follow from them."""
    work, bound = inspection.work, inspection.bounds
    tokens = f", {work.tokens:,} tokens" if work.tokens else ""
    least = "" if work.is_exact else " at least (a loop that ends by a condition counts once)"
    screen.say(
        f"a step: {work.rows:,} rows{tokens}; products of the loss and its gradients: "
        f"{flops_text(sum(work.flops.values()))}{least}"
    )
    if inspection.attention:
        screen.say(inspection.attention)
    idle = inspection.layout.mesh.devices // work.sharing
    if idle > 1:
        screen.say(f"{idle} devices at a time do the same work", style="yellow")
    rows = [
        ["FLOPs in products", flops_text(work.device_flops), bound and bound.compute_seconds],
        [
            "FLOPs recomputed in backward",
            flops_text(work.device_recomputed_flops),
            bound and bound.recomputation_seconds,
        ],
    ]
    for title, place, seconds in (
        ("communication inside nodes", "inside_nodes", bound and bound.link_seconds),
        ("communication between nodes", "between_nodes", bound and bound.network_seconds),
        ("communication", "anywhere", None),
    ):
        found = [sums[place] for sums in inspection.bytes_by_axes().values() if place in sums]
        if found:
            rows.append([title, bytes_text(sum(found)), seconds])
    if bound is None:
        screen.table(HEAD[:2], [row[:2] for row in rows])
        return
    screen.table(HEAD, [[a, b, "-" if c is None else seconds_text(c)] for a, b, c in rows])
    _show_bounds(screen, inspection)


def _show_bounds(screen: Screen, inspection: Inspection) -> None:
    """Show how long a step takes at least, how much is done in that time, and why it is a bound."""
    work, bound, rates = inspection.work, inspection.bounds, inspection.target.rates
    assert bound is not None and rates is not None, inspection.hardware
    unit, count = ("tokens", work.tokens) if work.tokens else ("rows", work.rows)
    most = f": at most {count / bound.step_seconds:,.0f} {unit}/s" if bound.step_seconds else ""
    screen.say(f"a step takes at least {seconds_text(bound.step_seconds)}{most}", style="bold")
    dtypes = sorted({*work.flops, *work.recomputed_flops} & rates.flops_per_second.keys())
    peaks = ", ".join(f"{flops_text(rates.flops_per_second[d])}/s in {d}" for d in dtypes)
    screen.say(
        f"bounds from the published rates of one {inspection.hardware}: {peaks}, "
        f"{bytes_text(rates.link_bytes_per_second)}/s inside a node and "
        f"{bytes_text(rates.network_bytes_per_second)}/s between nodes, each way; a real step "
        "takes longer",
        style="dim",
    )


def show_bytes_by_axes(screen: Screen, inspection: Inspection) -> None:
    """Show how much is communicated over each axis of the mesh, where there are several."""
    sums = inspection.bytes_by_axes()
    if len(sums) < 2:
        return
    sizes = sizes_of(inspection.layout.mesh)
    places = {"anywhere": "", "inside_nodes": "inside nodes", "between_nodes": "between nodes"}
    rows = [
        [
            " x ".join(f"{axis}={sizes[axis]}" for axis in axes.split(" x ")),
            places[place],
            bytes_text(count),
        ]
        for axes, found in sums.items()
        for place, count in found.items()
    ]
    known = any(where for _, where, _ in rows)
    head = ["over axes", "where", "bytes per device per step"]
    kept = (0, 1, 2) if known else (0, 2)
    screen.table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])
