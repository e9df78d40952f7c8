"""Records as JSON: every form there was is read as today's, newer ones refused; what differs."""

import json
import os
from pathlib import Path

import pytest

from jaxpar.core.errors import RequestError
from jaxpar.report.difference import difference, differences
from jaxpar.report.records import SCHEMA, UPGRADES, read, stamped

SAVED = Path(__file__).parent / "records"
FILES = sorted(SAVED.glob("[0-9]-*.json"))
"""Written when records had the schema that begins their name; none is ever written anew."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_record_that_was_saved_is_read_as_todays(file):
    """Its kind is known, and what it said is still in it."""
    schema, _, kind = file.stem.partition("-")
    (found,) = read(file)
    assert found["schema"] == SCHEMA and found["kind"] == kind.partition("-")[0]
    saved = json.loads(file.read_text())
    assert saved.get("schema", 0) == int(schema)
    assert {name for name in saved if name not in found} == set()


def test_every_schema_has_a_saved_record_and_a_way_to_the_next():
    """Whoever raises the number keeps records of the one before."""
    assert {int(file.stem[0]) for file in FILES} == set(range(SCHEMA + 1))
    assert set(UPGRADES) == set(range(SCHEMA))


def test_a_record_of_training_finds_its_curves_beside_it():
    """Of whichever folder it was written in."""
    (found,) = read(SAVED / "0-train.json")
    assert list(found["curve"]["loss"]) == list(range(1, 41))
    (alone,) = read(SAVED / "train-metrics.jsonl")
    assert alone["kind"] == "train" and alone["curve"] == found["curve"]


REFUSED = {
    "newer": ({"schema": SCHEMA + 1, "kind": "inspect"}, "newer jaxpar"),
    "odd": ({"schema": "one"}, "whole number"),
    "true": ({"schema": True, "kind": "verify"}, "whole number"),
    "other": ({"name": "a package"}, "no record of jaxpar"),
    "list": ([1, 2], "JSON object"),
    "text": ("", "another value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_record_is_refused_in_a_sentence(name, tmp_path):
    """With the file's name, and what would do."""
    value, said = REFUSED[name]
    file = tmp_path / "some.json"
    file.write_text(json.dumps(value))
    with pytest.raises(RequestError, match=said):
        read(file)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "no", "\x00"])
def test_what_is_no_json_is_refused(text, tmp_path):
    """However it is broken."""
    file = tmp_path / "some.json"
    file.write_text(text)
    with pytest.raises(RequestError):
        read(file)
    for missing in (tmp_path / "none.json", tmp_path / "folder"):
        with pytest.raises(RequestError):
            read(missing)


def test_a_file_without_end_is_not_read_to_its_end(monkeypatch):
    """A device, of which all memory would be filled; a pipe of what a command prints is a file."""
    monkeypatch.setattr("jaxpar.report.records.MOST_BYTES", 1000)
    with pytest.raises(RequestError, match="more than 1,000 bytes"):
        read(Path("/dev/zero"))
    reading, writing = os.pipe()
    os.write(writing, b'{"schema": 2, "kind": "verify"}')
    os.close(writing)
    assert read(Path(f"/dev/fd/{reading}"))[0]["kind"] == "verify"
    os.close(reading)


def test_a_run_that_was_killed_in_a_line_is_read_up_to_it(tmp_path):
    """Metrics end where they were cut, and rows that are whole are all there."""
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo')
    (found,) = read(file)
    assert found["curve"] == {"loss": {1: 2.0}}


def test_a_stamp_says_what_made_a_record_and_leaves_no_number_that_json_has_not():
    """NaN and infinity are null."""
    made = stamped({"loss": float("nan"), "of": [float("inf"), 1.0]}, "train", "jaxpar train mlp")
    assert made["schema"] == SCHEMA and made["kind"] == "train"
    assert made["loss"] is None and made["of"] == [None, 1.0]
    assert made["about"]["command"] == "jaxpar train mlp" and made["about"]["versions"]["jax"]
    json.dumps(made, allow_nan=False)


def of(name):
    (found,) = read(SAVED / f"0-{name}.json")
    return name, found


def test_a_program_does_not_differ_from_itself():
    """And every figure that it has is looked at."""
    found = difference(of("inspect"), of("inspect"))
    assert found["same"] and not found["collectives"] and not found["arrays"]
    assert {"devices", "communication bytes per step", "memory per device: total bytes"} <= {
        one["what"] for one in found["figures"]
    }


def test_what_is_added_one_way_is_gone_the_other_way():
    """Collectives, figures and arrays, each with both sides."""
    there = difference(of("inspect"), of("inspect-pipeline"))
    back = difference(of("inspect-pipeline"), of("inspect"))
    other = {"added": "gone", "gone": "added", "changed": "changed"}

    def turned(one):
        return {**one, "before": one["after"], "after": one["before"]}

    def ordered(several):
        return sorted(several, key=str)

    assert {one["change"] for one in there["collectives"]} == set(other)
    flipped = [turned({**one, "change": other[one["change"]]}) for one in there["collectives"]]
    assert ordered(flipped) == ordered(back["collectives"])
    for entry in ("figures", "arrays"):
        assert ordered(map(turned, there[entry])) == ordered(back[entry])


def test_a_changed_count_a_changed_byte_and_a_resharded_array_are_each_found():
    """One at a time, and nothing else."""
    name, base = of("inspect")
    text = json.dumps(base)

    def changed(change):
        other = json.loads(text)
        change(other)
        return difference((name, base), (name, other))

    def more(record):
        record["collectives"][0]["count"] += 1

    def resharded(record):
        record["arrays"][1]["spec"] = [[] for _ in record["arrays"][1]["spec"]]

    def larger(record):
        record["memory"]["temporary_bytes"] += 1

    assert [len(changed(more)[key]) for key in ("collectives", "arrays")] == [1, 0]
    assert [len(changed(resharded)[key]) for key in ("collectives", "arrays")] == [0, 1]
    found = [one for one in changed(larger)["figures"] if one["before"] != one["after"]]
    assert [one["what"] for one in found] == ["memory per device: temporary bytes"]


def test_programs_of_two_comparisons_are_held_against_each_other_by_name():
    """Those without a partner are left out; with none there is a sentence."""
    compare = of("compare")[1]
    (found,) = differences(("a.json", [compare]), ("b.json", [compare]))
    assert found["same"] and found["before"].startswith("a.json")
    with pytest.raises(RequestError, match="no program in it"):
        differences(("a.json", [of("verify")[1]]), ("b.json", [compare]))
    other = json.loads(json.dumps(of("run")[1]))
    with pytest.raises(RequestError, match="has the name"):
        differences(("a.json", [other]), ("b.json", [compare]))
