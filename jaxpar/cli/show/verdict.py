"""A verdict on the screen: a line when a layout equals one device, two when it does not."""

from jaxpar.cli.screen import Screen
from jaxpar.measures.verify.verdict import Verdict


def show_verdict(screen: Screen, verdict: Verdict) -> None:
    """Show what verification found."""
    worst = verdict.decisive
    judged = f"{worst.error:.1e} (bound {worst.bound:.0e}, {verdict.dtype})"
    if verdict.ok:
        arrays = max(check.arrays for check in verdict.checks)
        screen.say(
            f"verified: {arrays} arrays over {verdict.steps} steps equal one device's, largest "
            f"relative error {judged}",
            style="green",
        )
        if verdict.algorithm != "one step for the whole batch":
            screen.say(f"one device did {verdict.algorithm}", style="green")
        if widened := verdict.widened:
            worst = max(widened, key=lambda check: check.own_rounding)
            screen.say(
                "ill-conditioned: with its rows in another order one device is "
                f"{worst.own_rounding:.1e} from itself ({worst.name} of {worst.worst}), and the "
                "bound allows for that",
                style="yellow",
            )
        return
    screen.say(
        f"mismatch with one device: {worst.name} of {worst.worst}, relative error {judged}",
        style="red",
    )
    screen.say(f"likely mistake: {verdict.likely_mistake}", style="red")
