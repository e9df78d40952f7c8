"""Training on the screen: a bar while it runs, a line when it is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from jaxpar.cli.figures import metrics_text
from jaxpar.cli.screen import Screen
from jaxpar.runtime.outcome import Outcome

BAR_COLUMNS = 40
LEAST_BAR_COLUMNS = 4


@contextmanager
def progress(
    screen: Screen, steps: int, unit: str, units_per_step: int
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A bar with loss and speed; yields the function that `train` calls each step."""
    with Progress(_Line(screen.width), console=screen.console) as bar:
        fields = {"loss": float("nan"), "unit": unit, "units_per_step": units_per_step}
        task = bar.add_task("", total=steps, **fields)

        def watch(step: int, metrics: dict[str, float]) -> None:
            if "loss" in metrics:
                bar.update(task, completed=step, loss=metrics["loss"])
            elif step < steps:  # the last look at the test split is shown when all is done
                bar.console.print(metrics_text(f"step {step}", metrics), highlight=False)

        yield watch


class _Line(ProgressColumn):
    """A bar as long as the figures beside it leave room for, and none where they leave none."""

    def __init__(self, width: int):
        super().__init__(table_column=Column(overflow="fold"))
        self.width = width

    def render(self, task: Task) -> Text:
        """The line of one task: steps done, loss, steps and units a second, time."""
        elapsed = task.elapsed or 0.0
        rate = task.completed / elapsed if elapsed else 0.0
        loss, unit, units = (task.fields[name] for name in ("loss", "unit", "units_per_step"))
        figures = (
            f"{int(task.completed)}/{int(task.total or 0)} loss {loss:.4f} {rate:,.1f} steps/s "
            f"{rate * units:,.0f} {unit}/s {timedelta(seconds=int(elapsed))}"
        )
        room = min(BAR_COLUMNS, self.width - len(figures) - 1)
        if room < LEAST_BAR_COLUMNS:
            return Text(figures)
        done = round(room * task.completed / (task.total or 1))
        return Text.assemble(("━" * done, "green"), ("━" * (room - done), "dim"), " ", figures)


def show_outcome(screen: Screen, outcome: Outcome) -> None:
    """Show what training came to."""
    screen.say(
        f"{outcome.steps} steps in {outcome.seconds:.1f} s, "
        f"{outcome.steps_per_second:,.1f} steps/s, "
        f"{outcome.units_per_second:,.0f} {outcome.unit}/s"
    )
    if outcome.test:
        screen.say(metrics_text("test", outcome.test), style="bold green")
