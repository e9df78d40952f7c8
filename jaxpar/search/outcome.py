"""What a search came to: layouts ranked, the best of time and memory, and why the winner wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxpar.case import Case
from jaxpar.core.errors import one_line
from jaxpar.core.figures import seconds_text
from jaxpar.report.notebook import notebook_html
from jaxpar.search.record import Found, Rated, Refused

PLAN = 1
"""The form of a plan's file."""

PARTS = {
    "product": "products",
    "attention": "attention",
    "memory": "what touches memory",
    "bubble": "the pipeline's bubble",
    "exposed": "collectives that nothing hides",
    "crowded": "collectives beside it",
}


@dataclass(frozen=True)
class Search:
    """The answer to a question.

    Attributes:
        question: model, hardware and what was set.
        devices: how many there are.
        found: layouts that were compiled: those that fit first, the fastest first.
        rated: layouts with their estimates, the most promising first.
        refused: layouts that were not tried, with the reasons.
        considered: how many layouts there are.
        seconds: that this search took.
    """

    question: Case
    devices: int
    found: tuple[Found, ...]
    rated: tuple[Rated, ...]
    refused: tuple[Refused, ...]
    considered: int
    seconds: float

    def __repr__(self) -> str:
        best = "none fits" if self.winner is None else f"{self.winner.candidate.name} is best"
        return one_line(
            f"<Search of {self.question.model} on {self.devices} {self.question.hardware}: "
            f"{len(self.found)} layouts compiled, {best}>"
        )

    def _repr_html_(self) -> str:
        return notebook_html({"kind": "search", **self.record()})

    @property
    def winner(self) -> Found | None:
        """The fastest layout that fits; None where none does."""
        return self.found[0] if self.found and self.found[0].fits else None

    @property
    def front(self) -> tuple[Found, ...]:
        """Layouts than which none is both faster and smaller, the fastest first."""
        front: list[Found] = []
        for one in (found for found in self.found if found.fits):
            if not front or one.prediction["peak_bytes"] < front[-1].prediction["peak_bytes"]:
                front.append(one)
        return tuple(front)

    def why(self) -> tuple[str, ...]:
        """Sentences: what the winner's step consists of, and where the next ones lose."""
        if not self.found:
            first = next((one for one in self.rated if one.may_fit), None)
            told = (
                "none is estimated to fit"
                if first is None
                else (
                    f"by formulas {first.candidate.name} is the most promising, "
                    f"{seconds_text(first.estimate.seconds)} a step"
                )
            )
            return (f"nothing was compiled, for which a larger budget is needed; {told}",)
        if self.winner is None:
            return ("no layout that was compiled fits",)
        parts, seconds = _parts(self.winner.prediction), self.winner.seconds
        shares = sorted(parts.items(), key=lambda pair: -pair[1])
        told = ", ".join(f"{PARTS[n]} {t / seconds:.0%}" for n, t in shares if t > 0.02 * seconds)
        sentences = [f"{self.winner.candidate.name}: {told}"]
        for other in [one for one in self.found[1:] if one.fits][:2]:
            more = {n: t - parts[n] for n, t in _parts(other.prediction).items()}
            worst = max(more, key=lambda n: more[n])
            share = other.seconds / seconds - 1
            longer = f"{share:.1%} longer: {PARTS[worst]} +{seconds_text(more[worst])}"
            sentences.append(
                f"{other.candidate.name} takes {longer if share >= 0.001 else 'as long'}"
            )
        return tuple(sentences)

    def plan(self) -> dict[str, Any]:
        """The winner as a plan's record, which `train --plan` reads.

        Raises:
            ValueError: there is no winner.
        """
        if self.winner is None:
            raise ValueError("no layout fits, so there is no plan")
        case = self.winner.candidate.case(self.question)
        return {
            "plan": PLAN,
            "model": case.model,
            "strategy": case.strategy,
            "mesh": case.mesh,
            "hardware": case.hardware,
            "mode": case.mode,
            "set": dict(case.set),
            "predicted_step_seconds": self.winner.seconds,
            "predicted_peak_bytes": self.winner.prediction["peak_bytes"],
        }

    def record(self) -> dict[str, Any]:
        """The search as one JSON-ready dict."""
        front = {one.candidate.name for one in self.front}
        return {
            "model": self.question.model,
            "hardware": self.question.hardware,
            "devices": self.devices,
            "considered": self.considered,
            "estimated": len(self.rated),
            "compiled": sum("refusal" not in one.prediction for one in self.found),
            "candidates": [
                {
                    "rank": rank,
                    "layout": one.candidate.name,
                    "strategy": one.candidate.strategy,
                    "mesh": one.candidate.mesh,
                    "set": dict(one.candidate.set),
                    "estimated_seconds": one.estimate_seconds,
                    "on_front": one.candidate.name in front,
                    **one.prediction,
                }
                for rank, one in enumerate(self.found, 1)
            ],
            "estimates": [one.record() for one in self.rated],
            "refused": [
                {"layout": one.candidate.name, "reason": one.reason, "count": one.count}
                for one in self.refused
            ],
            "winner": self.winner and self.winner.candidate.name,
            "why": list(self.why()),
            "plan": self.winner and self.plan(),
        }


def _parts(prediction: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a predicted step, by what they are spent on."""
    return {
        **prediction["work_seconds"],
        "exposed": prediction["exposed_seconds"],
        "crowded": prediction["crowded_seconds"],
    }
