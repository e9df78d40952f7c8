"""Training on the screen: a bar or a line now and then while it runs, a line when it is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

from rich.progress import Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from jaxpar.cli.screen import Screen
from jaxpar.core.figures import metrics_text, number_text, seconds_text
from jaxpar.runtime.outcome import Outcome

BAR_COLUMNS = 40
LEAST_BAR_COLUMNS = 4
SECONDS_BETWEEN_LINES = 10.0
"""How often a line says how far training is, where there is no bar."""


@contextmanager
def progress(
    screen: Screen, steps: int, unit: str, units_per_step: int, tested: int | None = None
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A bar with loss and speed; yields the function that `train` calls each step.

    In a pipe there is a line every few seconds instead, one if the test of so many `tested` units
    takes a while, and one at the end.
    """
    line = _Line(screen)
    told = [time.perf_counter()]
    testing = "testing" if tested is None else f"testing on {tested:,} {unit}"
    with ExitStack() as closing, Progress(line, console=screen.console) as bar:
        fields = {"loss": None, "unit": unit, "units_per_step": units_per_step}
        task = bar.add_task("", total=steps, is_tested=False, **fields)

        def watch(step: int, metrics: dict[str, float]) -> None:
            if "loss" in metrics:
                bar.update(task, completed=step, loss=metrics["loss"])
                now = time.perf_counter()
                due = now - told[0] >= SECONDS_BETWEEN_LINES and step < steps
                if due and not screen.console.is_interactive:
                    told[0] = now
                    screen.say(line.figures(bar.tasks[0]))
                if step == steps and not screen.console.is_interactive:
                    closing.enter_context(screen.doing(testing))
            elif step < steps:  # the last look at the test split is shown when all is done
                bar.console.print(metrics_text(f"step {step}", metrics), highlight=False)

        yield watch
        bar.update(task, is_tested=True)


class _Line(ProgressColumn):
    """A bar as long as the figures beside it leave room for, and none where they leave none."""

    def __init__(self, screen: Screen):
        super().__init__(table_column=Column(overflow="fold"))
        self.width = screen.width
        self.strokes = "#-" if screen.console.options.ascii_only else "━━"

    def render(self, task: Task) -> Text:
        """The line of one task."""
        figures = self.figures(task)
        room = min(BAR_COLUMNS, self.width - len(figures) - 1)
        if room < LEAST_BAR_COLUMNS:
            return Text(figures)
        done = round(room * task.completed / (task.total or 1))
        full, left = self.strokes
        return Text.assemble((full * done, "green"), (left * (room - done), "dim"), " ", figures)

    def figures(self, task: Task) -> str:
        """Steps done, loss, steps and units a second, time; once all are done, that it is tested.

        The time stands still when the last step is done, as the rates do.
        """
        elapsed = task.finished_time or task.elapsed or 0.0
        rate = task.completed / elapsed if elapsed else 0.0
        loss, unit, units = (task.fields[name] for name in ("loss", "unit", "units_per_step"))
        told = "-" if loss is None else number_text(loss)
        clock = f"{elapsed:.1f} s" if elapsed < 60 else str(timedelta(seconds=int(elapsed)))
        is_testing = task.finished and not task.fields["is_tested"]
        return (
            f"{int(task.completed)}/{int(task.total or 0)} loss {told} "
            f"{rate:,.1f} steps/s {rate * units:,.0f} {unit}/s {clock}"
            + (", testing" if is_testing else "")
        )


def seconds_in_steps(outcome: Outcome) -> float:
    """How long the steps took that the rates are of: without the last look at the test split."""
    return outcome.steps / outcome.steps_per_second if outcome.steps_per_second else 0.0


def show_outcome(screen: Screen, outcome: Outcome) -> None:
    """Show what training came to."""
    stepped = seconds_in_steps(outcome)
    screen.say(
        f"{outcome.steps} steps in {seconds_text(stepped)}, "
        f"{outcome.steps_per_second:,.1f} steps/s, "
        f"{outcome.units_per_second:,.0f} {outcome.unit}/s; tested in "
        f"{seconds_text(max(0.0, outcome.seconds - stepped))}"
    )
    if outcome.test:
        screen.say(metrics_text("test", outcome.test), style="bold green")
    for note in outcome.notes:
        screen.say(f"note: {note}", style="yellow")
