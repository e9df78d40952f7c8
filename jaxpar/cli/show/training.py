"""Training on the screen: a bar while it runs, a line when it is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jaxpar.cli.figures import metrics_text
from jaxpar.cli.screen import Screen
from jaxpar.runtime.train import Outcome


@contextmanager
def progress(
    screen: Screen, steps: int, unit: str, units_per_step: int
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A bar with loss and speed; yields the function that `train` calls each step.

    On a narrow screen the bar gives way, and never a figure.
    """
    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[rate]:,.1f} steps/s"),
        TextColumn("{task.fields[units]:,.0f} {task.fields[unit]}/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen.console) as bar:
        task = bar.add_task("", total=steps, loss=float("nan"), rate=0.0, units=0.0, unit=unit)

        def watch(step: int, metrics: dict[str, float]) -> None:
            if "loss" not in metrics:
                if step < steps:  # the last look at the test split is shown when all is done
                    bar.console.print(metrics_text(f"step {step}", metrics), highlight=False)
                return
            elapsed = bar.tasks[task].elapsed or 1e-9
            bar.update(
                task,
                completed=step,
                loss=metrics["loss"],
                rate=step / elapsed,
                units=step / elapsed * units_per_step,
            )

        yield watch


def show_outcome(screen: Screen, outcome: Outcome) -> None:
    """Show what training came to."""
    screen.say(
        f"{outcome.steps} steps in {outcome.seconds:.1f} s, "
        f"{outcome.steps_per_second:,.1f} steps/s, "
        f"{outcome.units_per_second:,.0f} {outcome.unit}/s"
    )
    screen.say(metrics_text("test", outcome.test), style="bold green")
