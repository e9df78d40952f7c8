"""A prediction on the screen: how long a step takes, what it consists of, and what is exposed."""

from jaxpar.cli.screen import Screen
from jaxpar.core.figures import bytes_text, place_text, seconds_text
from jaxpar.measures.exposed import Exposed
from jaxpar.measures.predict import LIKELY, Prediction

NAMES = {
    "product": "products of matrices",
    "attention": "fused attention",
    "memory": "everything else that touches memory",
    "bubble": "bubble of the pipeline",
}


def show_prediction(screen: Screen, prediction: Prediction, price: float | None) -> None:
    """Show a prediction, and what it costs where a device's price an hour is given."""
    seconds = prediction.step_seconds
    rows = [
        [NAMES[kind], *_share(part, seconds)]
        for kind, part in prediction.work_seconds.items()
        if part or kind != "bubble"
    ]
    rows.append(
        ["slowed down by collectives beside it", *_share(prediction.crowded_seconds, seconds)]
    )
    rows.append(["collectives that nothing hides", *_share(prediction.exposed_seconds, seconds)])
    if prediction.averaging_seconds:
        rows.append(["synchronisation of replicas", *_share(prediction.averaging_seconds, seconds)])
    screen.table(["of a step", "predicted", "share"], rows)
    hidden = prediction.communication_seconds - prediction.exposed_seconds
    screen.say(
        f"collectives: {seconds_text(prediction.communication_seconds)}, of which work hides "
        f"{seconds_text(max(0.0, hidden))}"
    )
    if prediction.exposed:
        screen.table(
            ["exposed collective", "over axes", "count per step", "bytes per device per step",
             "exposed", "what"],
            [
                [one.kind, " x ".join(one.axes), f"{one.count:,.0f}", bytes_text(one.bytes),
                 seconds_text(one.exposed_seconds), _moved(one)]
                for one in prediction.exposed
                if one.exposed_seconds > 0.001 * seconds
            ] or [["none above 0.1 % of a step", "", "-", "-", "-", "-"]],
        )  # fmt: skip
    memory = prediction.program.hardware.memory_bytes or 0
    fits = "fits" if prediction.fits else "does not fit"
    screen.say(
        f"memory: {bytes_text(prediction.peak_bytes)} at the peak, {fits} in {bytes_text(memory)}",
        style="" if prediction.fits else "red",
    )
    _say_time(screen, prediction)
    for name, cost in prediction.cost(price).items():
        screen.say(f"{name.replace('_', ' ')}: {cost:,.4g}")


def _moved(one: Exposed) -> str:
    """What a collective moves, and the line."""
    return ", ".join(filter(None, (one.what, place_text(one.source)))) or "-"


def _say_time(screen: Screen, prediction: Prediction) -> None:
    """Say how long a step takes, between which bounds, and how much is done in it."""
    tokens = prediction.tokens_per_second
    devices = prediction.program.step.layout.mesh.devices
    done = f"{tokens:,.0f} tokens/s, {tokens / devices:,.0f} a device; " if tokens else ""
    screen.say(
        f"a step: {seconds_text(prediction.step_seconds)} predicted, between "
        f"{seconds_text(prediction.low_seconds)} and {seconds_text(prediction.high_seconds)} in "
        f"{LIKELY:.0%} of cases",
        style="bold",
    )
    screen.say(f"{done}MFU {prediction.mfu:.1%} (all scores of attention counted)")


def _share(part: float, seconds: float) -> list[str]:
    """A time, and its share of a step."""
    return [seconds_text(part), f"{part / seconds:.1%}" if seconds else "-"]
