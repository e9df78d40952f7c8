"""How far are predicted step times from those that others published of JAX on GPUs?

Command: python -m experiments run published (three minutes on two cores; nothing is run).
Expectation: no constant of the prediction is fitted to these runs, so that each is a test of it.
The program that is replayed is jaxpar's, compiled by the XLA installed here; what was measured is
another program with the same layout, sizes and remat policy, compiled by the XLA of its day: one
configuration ran 1.3 to 1.8 times faster eight months later. Rows are facts from public sources, in
experiments/data/published_runs.json. Those of MaxText on H100s are the nearest to what is compiled
here; those of Pax and Alpa are older programs.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment

RUNS = json.loads((Path(__file__).parent / "data" / "published_runs.json").read_text())

HARDWARE = {
    "H100-80GB-SXM": "h100",
    "A100-80GB-SXM": "a100",
    "A100-80GB": "a100",
    "A100-40GB": "a100_40gb",
    "V100-16GB-SXM2": "v100",
}

PROJECTIONS = "query,key,value,out_proj,ffn_inner,mlp_out"
"""The products without batch dims, which is what MaxText's "minimal" and Pax's
"SAVE_DOT_WITH_NO_BATCH_DIM" keep."""

REMAT = {
    "none": "none",
    "none stated (not scanned)": "none",
    "full activation checkpointing (every block)": "full",
    "one checkpoint per layer (remat on)": "full",
    "minimal_flash": f"{PROJECTIONS},attended",
    "minimal_flash (saves projections etc., recompute attention softmax part)": PROJECTIONS,
    "SAVE_DOT_WITH_NO_BATCH_DIM (from google/paxml scripts_gpu config)": PROJECTIONS,
}
"""What a source says of rematerialization -> the same in jaxpar's words."""

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def refusal(run: Mapping[str, Any]) -> str:
    """Why a run cannot be expressed, or ""."""
    parallel = run["parallel"]
    if run["remat"] not in REMAT:
        return f"rematerialization {run['remat']}"
    if run["dtype"] not in DTYPES:
        return f"products in {run['dtype']}"
    if "lora" in run["id"]:
        return "trains adapters only"
    if parallel.get("strategy"):
        return f"a layout that {parallel['strategy'].replace('_', ' ')} found"
    if not parallel.get("microbatch"):
        return "microbatch not stated"
    if any(parallel.get(axis, 1) > 1 for axis in ("tp", "pp", "cp", "ep")):
        return "sharded in further ways at once"
    if (
        run["batch"] % (run["devices"] * parallel.get("grad_accum", 1))
        and "Alpa" not in run["framework"]
    ):
        return "microbatches of different sizes"
    return ""


def case(run: Mapping[str, Any]) -> Case:
    """A published run in the words of the command line."""
    model, parallel = run["model"], run["parallel"]
    strategy, mesh = _layout(parallel)
    hardware = HARDWARE[run["chip"]]
    network = run["network"] or ""
    accumulated = parallel.get("grad_accum", 1)
    sizes = {
        "layers": model["layers"],
        "width": model["d_model"],
        "heads": model["heads"],
        "kv_heads": model["kv_heads"],
        "ffn": model["d_ff"],
        "vocabulary": model["vocab"],
        "sequence": model["seq_len"],
        "gated": model["gated"],
        "activation": model["activation"],
        "positions": "rope" if model["pos_emb"] == "rope" else "learned",
        "norm": "rms" if model["norm"] == "rms" else "layer",
        "bias": model["norm"] == "layernorm",
        "tied": bool(model["tied_embeddings"]),
        "compute_dtype": DTYPES[run["dtype"]],
        "remat": REMAT[run["remat"]],
        "unroll": 1,
        "attention": "fused" if run["fused_attention"] else "whole",
        "batch": run["batch"],
    }
    return Case(
        "transformer",
        strategy=strategy,
        mesh=mesh,
        hardware="h100_a3_high" if "A3 High" in network else hardware,
        set={**sizes, **({"microbatches": accumulated} if accumulated > 1 else {})},
    )


def _layout(parallel: Mapping[str, Any]) -> tuple[str, str]:
    """(strategy, mesh) of the sizes that a source prints."""
    copies, shards = parallel["dp"], parallel["fsdp"]
    if parallel.get("zero") == 2:
        return "zero2", f"data={copies}"
    if shards == 1:
        return "data", f"data={copies}"
    return (
        ("fsdp", f"data={shards}")
        if copies == 1
        else ("replica+fsdp", f"replica={copies},data={shards}")
    )


def compared(runs: tuple[Mapping[str, Any], ...]) -> Experiment:
    """The experiment that predicts these runs and holds each against what was measured."""

    def adds(number: int, row: Mapping[str, Any]) -> Mapping[str, Any]:
        run, predicted = runs[number], row["predict"]
        measured, seconds = run["measured"], step_seconds(run)
        peak = measured.get("peak_mem_gib")
        return {
            "published": run["id"],
            "source": f"{run['source']['repo']}, {run['date'][:4]}",
            "measured_seconds": seconds,
            "out_of_memory": bool(measured.get("oom")),
            "error": seconds and predicted["step_seconds"] / seconds - 1,
            "within": seconds and predicted["low_seconds"] <= seconds <= predicted["high_seconds"],
            "memory_error": peak and predicted["peak_bytes"] / (peak * 2**30) - 1,
        }

    return Experiment(
        cases=tuple(case(run) for run in runs),
        measures=("predict",),
        claims=(
            Claim(
                "median error of MaxText on H100s at most 8 %, worst at most 15 %",
                lambda rows: _within(rows, "maxtext", 0.08, 0.15),
                needs=len(runs),
            ),
        ),
        columns=(
            "published", "hardware", "strategy", "mesh", "predict.step_seconds",
            "measured_seconds", "error",
        ),
        adds=adds,
        remarks=remarks,
    )  # fmt: skip


def step_seconds(run: Mapping[str, Any]) -> float | None:
    """The measured time of a step; None of a run that ran out of memory."""
    return run["measured"].get("step_time_s") or run["derived"].get("step_time_s")


def remarks(rows: tuple[Mapping[str, Any], ...]) -> Iterator[str]:
    """The errors by source, the shares within the interval, and what could not be expressed."""
    timed = [row for row in rows if row.get("error") is not None]
    for source in dict.fromkeys(row["source"] for row in timed):
        own = [row for row in timed if row["source"] == source]
        errors = sorted(abs(row["error"]) for row in own)
        inside = sum(bool(row["within"]) for row in own)
        yield (
            f"{source}: {len(own)} runs, median error {median(errors):.1%}, worst "
            f"{errors[-1]:.1%}, {inside} within the interval"
        )
    known = [row["memory_error"] for row in rows if row.get("memory_error") is not None]
    if known:
        yield (
            f"peak memory: {len(known)} runs, median error {median(map(abs, known)):.1%}, worst "
            f"{max(map(abs, known)):.1%}"
        )
    told = [row for row in rows if "out_of_memory" in row]
    right = sum(row["out_of_memory"] != row["predict"]["fits"] for row in told)
    yield f"fits or not: right for {right} of {len(told)}"


def _within(rows: tuple[Mapping[str, Any], ...], source: str, middle: float, most: float) -> bool:
    """Whether the errors of a source's runs are within bounds."""
    errors = [abs(row["error"]) for row in rows if source in row["source"] and row["error"]]
    return bool(errors) and median(errors) <= middle and max(errors) <= most


JAX = tuple(run for run in RUNS if "JAX" in run["framework"] and not refusal(run))
experiment = compared(JAX)
