"""What a comparison finds, and how far an array may be from one device's."""

from dataclasses import dataclass, field

from jaxpar.core.errors import one_line
from jaxpar.measures.verify.compare import Check
from jaxpar.program.record import Program
from jaxpar.report.notebook import notebook_html

BOUNDS = {
    # Honest layouts reach 3e-14 in float64 and 1.5e-6 (gradient), 5e-5 (parameters after 20 steps
    # of AdamW) in float32; the smallest classic mistake is 1.8e-3 on the gradient. See
    # BUILD_NOTES.
    "float64": {"init": 1e-12, "gradient": 1e-9, "update": 1e-9, "steps": 1e-9, "loss": 1e-9},
    "float32": {"init": 1e-6, "gradient": 1e-4, "update": 1e-5, "steps": 1e-3, "loss": 1e-5},
    # Narrower compute rounds each product to 8 (bfloat16) or 11 bits: only gross mistakes are told.
    "bfloat16": {"init": 1e-6, "gradient": 5e-2, "update": 1e-5, "steps": 1e-1, "loss": 1e-2},
    "float16": {"init": 1e-6, "gradient": 1e-2, "update": 1e-5, "steps": 1e-1, "loss": 1e-2},
}
"""Dtype the forward pass is computed in -> check -> largest relative error accepted."""

ROUNDING = 1e-3
"""Share of the bound on gradients below which all of an array's gradient is rounding: that of a key
bias, which a softmax cancels. An optimizer that divides by a gradient's size makes steps of it, so
such an array is judged by its gradient and not by where it has gone."""


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: `checks` in order, the dtype judged in, and of a failure the mistake.

    `algorithm` is what one device was made to do for the comparison. `program` is the layout's step
    as it was tried, so that its collectives can be read: in the precision of `dtype`.
    """

    dtype: str
    checks: tuple[Check, ...]
    steps: int
    batch_size: int
    likely_mistake: str | None
    algorithm: str = "one step for the whole batch"
    program: Program | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        worst = self.decisive
        return one_line(
            f"<Verdict {'ok' if self.ok else 'MISMATCH'}: {worst.name} of {worst.worst}, relative "
            f"error {worst.error:.1e} (bound {worst.bound:.0e}, {self.dtype})>"
        )

    def _repr_html_(self) -> str:
        about = {} if self.program is None else self.program.step.layout.record()
        # What was compared is said by name; the arrays are drawn by the layout itself.
        return notebook_html({"kind": "verify", **{**about, "arrays": []}, **self.record()})

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    @property
    def widened(self) -> tuple[Check, ...]:
        """The checks whose bound is wider than the dtype's: one device itself rounds as much."""
        return tuple(check for check in self.checks if check.own_rounding)

    @property
    def decisive(self) -> Check:
        """The first check that failed, or the one nearest its bound."""
        failed = [check for check in self.checks if not check.ok]
        return failed[0] if failed else max(self.checks, key=lambda c: c.error / c.bound)

    def record(self) -> dict:
        """The verdict as one JSON-ready dict."""
        return {
            "ok": self.ok,
            "algorithm": self.algorithm,
            "dtype": self.dtype,
            "max_relative_error": self.decisive.error,
            "bound": self.decisive.bound,
            "worst": self.decisive.worst,
            "check": self.decisive.name,
            "steps": self.steps,
            "batch": self.batch_size,
            "likely_mistake": self.likely_mistake,
            "checks": [
                {
                    "name": c.name,
                    "ok": c.ok,
                    "arrays": c.arrays,
                    "worst": c.worst,
                    "error": c.error,
                    "bound": c.bound,
                    "own_rounding": c.own_rounding,
                }
                for c in self.checks
            ],
        }
