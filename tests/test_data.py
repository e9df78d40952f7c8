"""Laws of the batches: a pure function of (seed, step), in parts that make the whole, each once."""

import ast
import itertools
import os
import pathlib
import re
import sys
import tracemalloc
from collections import Counter
from typing import Any, cast

import numpy as np
import pytest

import jaxpar.data
from jaxpar.core.catalogue import DATA
from jaxpar.data import digits, iterable, text, tokens, windows
from jaxpar.data.record import DataError, Dataset

SIZE = 12
ROOM = pathlib.Path(jaxpar.data.__path__[0])


def id_file(path, ids):
    """Write ids as a token file."""
    np.asarray(ids, "<u2").tofile(path)
    return path


def numbered(count, *, rows=SIZE):
    """Batches whose every value tells which batch and row it is."""
    for batch in range(count):
        row = np.arange(batch * rows, (batch + 1) * rows)
        yield {"x": np.stack([row, -row], 1).astype(np.float32), "label": row.astype(np.int32)}


def short_last():
    """Two test batches, the second of 5 rows."""
    first, second = numbered(2)
    return [first, {name: value[:5] for name, value in second.items()}]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> dict[str, Dataset]:
    """One dataset of every entry of the folder, and of every way to open it."""
    folder = tmp_path_factory.mktemp("ids")
    ids = np.random.default_rng(0).integers(0, 1000, 5003)
    one = id_file(folder / "one.bin", ids)
    id_file(folder / "train.bin", ids[:4000])
    id_file(folder / "val.bin", ids[4000:])
    return {
        "digits": digits.dataset(),
        "text": text.dataset(),
        "tokens_file": tokens.dataset(one, sequence=16),
        "tokens_folder": tokens.dataset(folder, sequence=16, vocabulary=1024),
        "iterable": iterable.dataset(lambda: numbered(20), vocabulary=240, test=short_last()),
    }


NAMES = ["digits", "text", "tokens_file", "tokens_folder", "iterable"]
every = pytest.mark.parametrize("name", NAMES)


def test_every_file_of_the_folder_is_tested_here():
    """A new entry is in the catalogue of these laws the moment it exists, or this fails."""
    assert set(DATA.names()) == {name.split("_")[0] for name in NAMES}


def test_no_file_of_the_folder_imports_jax():
    """Batches are made before any device is: the room knows numpy and its own files."""
    allowed = {"numpy", "sklearn", "pydoc_data", *sys.stdlib_module_names}
    seen = 0
    for file in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                seen += 1
                ours = f"{module}.".startswith("jaxpar.data.") or module == "jaxpar.core.errors"
                assert ours or module.split(".")[0] in allowed, (file.name, module)
    assert seen >= 10


@every
def test_batches_have_the_shapes_and_dtypes_of_the_fields(catalogue, name):
    """Every batch, to train or to test, is the fields with a batch dim of `size` in front."""
    dataset = catalogue[name]
    assert dataset.fields["weight"][1] == "float32"
    for batch in (dataset.batch(0, size=SIZE), *dataset.evaluation(size=SIZE)):
        assert list(batch) == list(dataset.fields)
        for field, (shape, dtype) in dataset.fields.items():
            assert batch[field].shape == (SIZE, *shape), field
            assert batch[field].dtype == dtype, field
            assert type(batch[field]) is np.ndarray, field


@every
def test_a_batch_is_a_function_of_seed_and_step(catalogue, name):
    """Resumed at any step, in any order and in a dataset that saw none before: the same rows."""
    dataset = catalogue[name]
    forward = [dataset.batch(step, size=SIZE, seed=3) for step in range(8)]
    for step in (5, 7, 0, 5):
        again = dataset.batch(step, size=SIZE, seed=3)
        for field in dataset.fields:
            np.testing.assert_array_equal(again[field], forward[step][field])
    if name == "digits":
        np.testing.assert_array_equal(
            digits.dataset().batch(6, size=SIZE, seed=3)["image"], forward[6]["image"]
        )


@every
def test_steps_differ_and_seeds_differ(catalogue, name):
    """Neither the step nor the seed is ignored; an iterable's order is its own."""
    dataset = catalogue[name]
    first = next(iter(dataset.fields))
    base = dataset.batch(4, size=SIZE, seed=1)[first]
    assert not np.array_equal(base, dataset.batch(5, size=SIZE, seed=1)[first])
    if name != "iterable":
        assert not np.array_equal(base, dataset.batch(4, size=SIZE, seed=2)[first])
        # (1, 4) and (4, 1) are different pairs
        assert not np.array_equal(base, dataset.batch(1, size=SIZE, seed=4)[first])


@every
@pytest.mark.parametrize(
    "parts",
    [
        [slice(0, 5), slice(5, 6), slice(6, 6), slice(6, 12)],
        [slice(None, -4), slice(-4, None)],
        [slice(0, None, 2), slice(1, None, 2)],
        [slice(None, None, -1)],
    ],
    ids=["uneven", "negative", "interleaved", "backwards"],
)
def test_parts_by_rows_are_the_whole_batch(catalogue, name, parts):
    """Processes that each ask for some rows get, together, the batch one process would get."""
    dataset = catalogue[name]
    # 119 * 12 = 1428: for the digits this batch holds the end of one epoch and part of the next.
    for step in (0, 119):
        whole = dataset.batch(step, size=SIZE)
        for rows in parts:
            part = dataset.batch(step, size=SIZE, rows=rows)
            for field in dataset.fields:
                np.testing.assert_array_equal(part[field], whole[field][rows])
    whole = list(dataset.evaluation(size=SIZE))
    for rows in parts:
        part = list(dataset.evaluation(size=SIZE, rows=rows))
        assert len(part) == len(whole) >= 2
        for ours, theirs in zip(part, whole, strict=True):
            for field in dataset.fields:
                np.testing.assert_array_equal(ours[field], theirs[field][rows])


def test_only_the_rows_asked_for_are_read():
    """A process that holds 2 rows of 64 reads 2 windows of the stream, not 64."""

    class Counted:
        read = 0

        def __len__(self):
            return 10_000

        def __getitem__(self, at):
            Counted.read += at.size
            return (at % 7).astype(np.uint8)

    counted: Any = Counted()
    stream = windows.Stream("counted", counted)
    dataset = windows.windows("counted", train=stream, test=stream, sequence=9, vocabulary=7)
    dataset.batch(0, size=64, rows=slice(30, 32))
    assert Counted.read == 2 * (9 + 1)
    list(dataset.evaluation(size=64, rows=slice(30, 32), limit=3))
    assert Counted.read == 2 * (9 + 1) * 4


@every
def test_an_evaluation_counts_everything_exactly_once(catalogue, name):
    """The weights add up to the size of the split, whatever the size of the batches."""
    dataset = catalogue[name]
    # An iterable is cut into batches already: 12 rows and 5.
    expected = 17 if name == "iterable" else dataset.test_size
    for size in (SIZE,) if name == "iterable" else (1, 7, SIZE, 5000):
        assert sum(batch["weight"].sum() for batch in dataset.evaluation(size=size)) == expected
    *full, last = dataset.evaluation(size=SIZE)
    assert all(batch["weight"].all() for batch in full)
    if name != "digits":  # 360 is 30 batches of 12
        assert not last["weight"].all()
        assert {0.0, 1.0} == set(last["weight"].ravel().tolist())


@every
def test_limit_stops_an_evaluation_early(catalogue, name):
    """limit counts batches, and those given are the first ones."""
    dataset = catalogue[name]
    (only,) = dataset.evaluation(size=SIZE, limit=1)
    first = next(dataset.evaluation(size=SIZE))
    for field in dataset.fields:
        np.testing.assert_array_equal(only[field], first[field])


def pairs(batch):
    """Return each (image, label) with weight 1 as something to count."""
    real = batch["weight"] == 1
    images, labels = batch["image"][real], batch["label"][real]
    return Counter(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def all_digits():
    """Return every digit scikit-learn has, counted, read here by the shortest way."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    scaled = (bunch.images / 16).astype("float32")
    return Counter(
        (image.tobytes(), int(label)) for image, label in zip(scaled, bunch.target, strict=True)
    )


@pytest.mark.parametrize("epoch", [0, 3])
def test_each_digit_is_trained_on_once_an_epoch(catalogue, epoch):
    """1437 = 3 * 479: a size of 479 makes epochs of 3 steps; all = train + test, so no overlap."""
    dataset = catalogue["digits"]
    assert (dataset.train_size, dataset.test_size) == (1437, 360)
    test = sum((pairs(batch) for batch in dataset.evaluation(size=100)), Counter())
    seen = sum((pairs(dataset.batch(3 * epoch + i, size=479)) for i in range(3)), Counter())
    assert seen.total() == 1437 and test.total() == 360
    assert seen + test == all_digits()


def test_digits_lose_none_when_the_size_does_not_divide_the_epoch(catalogue):
    """100 does not divide 1437, and 3000 is more than two epochs: rows go on from epoch to epoch.

    After 4 epochs, 5748 rows, each example was seen 4 times.
    """
    dataset = catalogue["digits"]
    for size in (100, 3000):
        rows = itertools.chain.from_iterable(
            pairs_in_order(dataset.batch(step, size=size)) for step in range(-(-5748 // size))
        )
        seen = Counter(itertools.islice(rows, 5748))
        once = sum((pairs(dataset.batch(i, size=479)) for i in range(3)), Counter())
        assert seen == Counter({pair: 4 * times for pair, times in once.items()})


def pairs_in_order(batch):
    """Return each (image, label) in the order of the rows."""
    return [
        (image.tobytes(), int(label))
        for image, label in zip(batch["image"], batch["label"], strict=True)
    ]


def test_epochs_are_in_different_orders(catalogue):
    """An order that came back every epoch would show the model the same batches again."""
    first, second = (catalogue["digits"].batch(epoch, size=1437)["image"] for epoch in (0, 1))
    assert not np.array_equal(first, second)


def test_digits_split_holds_each_class_in_proportion(catalogue):
    """360 of 1797 is 20.03%: each class gives that share of its own, to within one image."""
    (test,) = catalogue["digits"].evaluation(size=360)
    everything = Counter(label for _, label in all_digits().elements())
    for label, count in everything.items():
        assert abs((test["label"] == label).sum() - count * 360 / 1797) <= 1
    assert len(set(test["label"][:40].tolist())) == 10, "the test split is not sorted by class"
    assert 0 == test["image"].min() and test["image"].max() == 1


def test_digits_split_depends_on_its_seed(catalogue):
    """Another split for another seed, and the same one for the same."""
    ours, same, other = (
        next(digits.dataset(seed).evaluation(size=360))["image"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(ours, same)
    assert not np.array_equal(ours, other)


TOKEN_NAMES = [name for name in NAMES if name not in ("digits", "iterable")]


@pytest.mark.parametrize("name", TOKEN_NAMES)
def test_targets_are_the_tokens_shifted_by_one(catalogue, name):
    """Within a window the target is the next token; at its end, see the two tests below."""
    for batch in (catalogue[name].batch(2, size=SIZE), *catalogue[name].evaluation(size=SIZE)):
        real = batch["weight"][:, 1:] == 1
        np.testing.assert_array_equal(batch["tokens"][:, 1:][real], batch["targets"][:, :-1][real])
        assert batch["tokens"].max() < catalogue[name].vocabulary


def stretches(batch):
    """Return each window and its last target as one row: what stood in the stream."""
    return np.concatenate([batch["tokens"], batch["targets"][:, -1:]], axis=1)


def test_text_windows_stand_in_the_text(catalogue):
    """Every training window, its last target with it, is a stretch of the topics trained on."""
    train, _ = text._split()
    for row in stretches(catalogue["text"].batch(0, size=64)):
        assert bytes(row.astype(np.uint8)) in train


@pytest.mark.parametrize("name", TOKEN_NAMES)
def test_test_windows_put_together_are_the_stream(catalogue, name, tmp_path):
    """Read in order without padding, tokens are the held-out stream and targets its next ones."""
    ids = np.random.default_rng(0).integers(0, 1000, 5003)
    stream = {
        "text": list(text._split()[1]),
        "tokens_file": ids[-500:],  # a tenth of 5003, rounded
        "tokens_folder": ids[4000:],
    }[name]
    batches = list(catalogue[name].evaluation(size=SIZE))
    for field, expected in (("tokens", stream[:-1]), ("targets", stream[1:])):
        read = np.concatenate([batch[field][batch["weight"] == 1] for batch in batches])
        np.testing.assert_array_equal(read, expected)


def test_training_windows_reach_both_ends_of_their_part_and_no_further(tmp_path):
    """Ids 0 to 9 train, in windows of 3 that start at 0 to 7; ids 10 to 19 test, from 10 on."""
    dataset = tokens.dataset(
        id_file(tmp_path / "twenty.bin", np.arange(20)), sequence=2, held_out=0.5
    )
    seen = {tuple(row) for row in stretches(dataset.batch(0, size=500)).tolist()}
    assert seen == {(i, i + 1, i + 2) for i in range(8)}
    (test,) = dataset.evaluation(size=5)
    assert test["tokens"][:, 0].tolist() == [10, 12, 14, 16, 18]
    assert (dataset.train_size, dataset.test_size) == (9, 9)


def test_text_holds_out_whole_topics_across_the_alphabet():
    """About a tenth of the bytes, in every third of the alphabet, each topic on one side only."""
    topics = text._topics()
    assert list(topics) == sorted(topics) and len(topics) >= 60
    assert all(body.startswith(name.encode()) for name, body in topics.items())
    held = text._held_out(topics)
    train, test = text._split()
    assert len(train) + len(test) == sum(map(len, topics.values())) > 300_000
    assert 0.08 <= len(test) / (len(train) + len(test)) <= 0.12
    for name, body in topics.items():
        assert (body in test) == (name in held), name
        assert (body in train) == (name not in held), name
    names = list(topics)
    third = len(names) // 3
    for part in (names[:third], names[third : 2 * third], names[2 * third :]):
        assert 3 <= len(held.intersection(part)) <= third - 3


def test_text_held_out_is_not_printed_again_under_another_topic():
    """The manual repeats whole sections ("if" in "compound"): none may be on both sides.

    Counted in stretches of 100 bytes, 20 apart: on Python 3.11 0.04% are shared, one idiom of
    the manual's; 1% would be if "if" were held out too, and 6% if "with" were.
    """
    train, test = text._split()
    starts = range(0, len(test) - 100, 20)
    shared = sum(test[start : start + 100] in train for start in starts)
    assert len(starts) > 1000
    assert shared / len(starts) < 0.005


def test_a_token_file_is_mapped_and_never_loaded(tmp_path):
    """Opening 8 MB of tokens and reading batches allocates less than half of it."""
    path = id_file(tmp_path / "large.bin", np.arange(4_000_000) % 50_000)
    tracemalloc.start()
    try:
        dataset = tokens.dataset(path)
        dataset.batch(0, size=8)
        next(dataset.evaluation(size=8))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4_000_000
    assert dataset.vocabulary == 50_000


def test_an_iterable_is_read_forward_and_skips(catalogue):
    """Step 5 of a generator is its sixth batch, and asking for it twice gives it twice."""
    dataset = iterable.dataset(numbered(20), vocabulary=240)
    for step in (0, 5, 5, 19):
        batch = dataset.batch(step, size=SIZE)
        np.testing.assert_array_equal(batch["label"], np.arange(step * 12, step * 12 + 12))
        np.testing.assert_array_equal(batch["weight"], np.ones(SIZE))


def test_an_iterable_that_is_a_function_starts_over_when_it_ends():
    """Step 7 of a pass of 3 batches is the second of the third pass."""
    dataset = iterable.dataset(lambda: numbered(3), vocabulary=36)
    assert dataset.batch(7, size=SIZE)["label"][0] == 12
    assert dataset.batch(2, size=SIZE)["label"][0] == 24


def test_an_iterable_weighs_each_token_when_it_counts_tokens():
    """The added weight has the shape of what is counted; one that is there stays as it is."""
    ids = np.zeros((4, 6), np.int32)
    added = iterable.dataset([{"tokens": ids}], vocabulary=9, unit="tokens")
    assert added.batch(0, size=4)["weight"].shape == (4, 6)
    half = np.full(4, 0.5, np.float32)
    kept = iterable.dataset([{"tokens": ids, "weight": half}], vocabulary=9)
    np.testing.assert_array_equal(kept.batch(0, size=4)["weight"], half)


def test_an_iterable_may_fill_the_same_arrays_anew():
    """A batch handed out does not change when the source moves on."""

    def refilled():
        x = np.zeros((2, 1), np.float32)
        for step in range(3):
            x[:] = step
            yield {"x": x}

    dataset = iterable.dataset(refilled, vocabulary=1)
    kept = dataset.batch(0, size=2)
    dataset.batch(2, size=2)
    assert kept["x"].tolist() == [[0], [0]]


# Errors: each sentence says where, what was met, the rule, and the repair for this very case.


def refused(sentence: str):
    """Expect a DataError with these words, in this order; "..." stands for any others."""
    pattern = ".*".join(re.escape(words) for words in sentence.split("..."))
    return pytest.raises(DataError, match=f"(?s){pattern}")


@every
def test_requests_that_make_no_sense_are_refused(catalogue, name):
    """A batch needs a step from 0 up, at least one row, and rows that are in it."""
    dataset = catalogue[name]
    with refused("step=-1 is too small: step must be 0 or more"):
        dataset.batch(-1, size=4)
    with refused("step=1.0 is a float, but step must be a whole number from 0 up"):
        dataset.batch(1.0, size=4)
    with refused("size=0 is too small: size must be 1 or more"):
        dataset.batch(0, size=0)
    with refused("seed=-2 is too small: seed must be 0 or more"):
        dataset.batch(0, size=4, seed=-2)
    with refused("reaches row 16 of a batch of size=12...Use size=16 or more"):
        dataset.batch(0, size=12, rows=slice(8, 16))
    with refused("reaches row 16 of a batch of size=12"):
        dataset.evaluation(size=12, rows=slice(8, 16))
    with refused("limit=0 is too small: limit must be 1 or more"):
        dataset.evaluation(size=12, limit=0)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    """The one dataset with a dependency of its own names it."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with refused("scikit-learn...no module...pip install scikit-learn"):
        digits.dataset()


def test_text_without_the_manual_says_so(monkeypatch):
    """Some systems install the standard library in parts."""
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with refused("pydoc_data.topics...installed without...Install the full standard library"):
        text._topics()


def test_a_window_longer_than_the_text_is_refused():
    """The repair is the longest window the text has room for."""
    train, _ = text._split()
    longest = len(train) - 1
    text.dataset(longest)
    with refused(f"{len(train)} tokens to train on, but sequence={longest + 1} needs at least "
                 f"{longest + 2}...Use sequence={longest} or less"):  # fmt: skip
        text.dataset(longest + 1)
    with refused("sequence=0 is too small"):
        text.dataset(0)


def test_token_files_that_are_none_are_refused(tmp_path):
    """Missing, empty, cut off, of another kind: each with its own repair."""
    id_file(tmp_path / "corpus.bin", np.arange(500))
    with refused(f"typo.bin: no such file. Name a .bin file; {tmp_path} has corpus.bin."):
        tokens.dataset(tmp_path / "typo.bin")
    with refused("no such file...has no .bin files."):
        tokens.dataset(tmp_path / "nowhere" / "typo.bin")
    (tmp_path / "empty.bin").touch()
    with refused("empty.bin: is empty (0 bytes), but at least 2 tokens...Write it again"):
        tokens.dataset(tmp_path / "empty.bin")
    (tmp_path / "cut.bin").write_bytes(bytes(1001))
    with refused("cut.bin: has 1001 bytes, an odd number...truncate -s 1000 cut.bin"):
        tokens.dataset(tmp_path / "cut.bin")
    (tmp_path / "corpus.txt").write_text("text")
    with refused("corpus.txt: is not a .bin file...uint16...tofile('corpus.bin')"):
        tokens.dataset(tmp_path / "corpus.txt")
    header = np.zeros(256, "<i4")
    header[0] = 20240520
    (tmp_path / "llmc.bin").write_bytes(header.tobytes() + bytes(1000))
    with refused("llmc.bin: starts with the 1024-byte header of llm.c...tail -c +1025 llmc.bin"):
        tokens.dataset(tmp_path / "llmc.bin")


def test_token_files_too_short_are_refused(tmp_path):
    """100 tokens are 90 to train on: windows of 89, or a longer file."""
    path = id_file(tmp_path / "tiny.bin", np.arange(100))
    with refused("tiny.bin: 90 tokens to train on, but sequence=128 needs at least 129, a window "
                 "and the token after it. Use sequence=89 or less, or a longer text"):  # fmt: skip
        tokens.dataset(path)
    tokens.dataset(path, sequence=89)
    with refused("tiny.bin: 1 tokens to test on...at least 2...Hold out at least 1 more"):
        tokens.dataset(path, sequence=9, held_out=0.01)
    with refused("held_out=1.5, but...must lie between 0 and 1. Use held_out=0.1"):
        tokens.dataset(path, sequence=9, held_out=1.5)


def test_token_folders_need_both_files(tmp_path):
    """Half a folder is refused, and a second way to hold out beside val.bin."""
    id_file(tmp_path / "train.bin", np.arange(500))
    with refused("has no val.bin...must hold train.bin and val.bin. Or name one file"
                 "...has train.bin."):  # fmt: skip
        tokens.dataset(tmp_path)
    id_file(tmp_path / "val.bin", np.arange(500))
    with refused("held_out=0.2 was given, but a folder already holds out its val.bin"):
        tokens.dataset(tmp_path, held_out=0.2)


@pytest.mark.parametrize("position", [7, 1_500_000, 2_999_999])
def test_ids_beyond_the_vocabulary_are_refused_at_opening(tmp_path, position):
    """Wherever it hides, beyond the first chunk of the scan or in the held-out part."""
    ids = np.full(3_000_000, 3)
    ids[position] = 60
    ids[position - 1] = 55
    path = id_file(tmp_path / "bad.bin", ids)
    with refused(f"bad.bin: token {position} has id 60, but vocabulary=50 allows ids 0 to 49. "
                 "Use vocabulary=61 or more"):  # fmt: skip
        tokens.dataset(path, vocabulary=50)
    with refused("vocabulary=60 allows ids 0 to 59. Use vocabulary=61 or more"):
        tokens.dataset(path, vocabulary=60)
    assert tokens.dataset(path, vocabulary=61).vocabulary == 61
    assert tokens.dataset(path).vocabulary == 61


def test_the_folder_file_with_the_largest_id_is_named(tmp_path):
    """The repair has to work the first time: the largest of both files, though train is bad too."""
    id_file(tmp_path / "train.bin", [*range(200), 300])
    id_file(tmp_path / "val.bin", [*range(200), 400, 5])
    with refused("val.bin: token 200 has id 400, but vocabulary=100...vocabulary=401 or more"):
        tokens.dataset(tmp_path, vocabulary=100)
    with refused("vocabulary=0 is too small"):
        tokens.dataset(tmp_path, vocabulary=0)


def test_ids_that_change_after_opening_are_refused(tmp_path):
    """By the time at which the file was written; where that is put back, by the id that is met."""
    path = id_file(tmp_path / "live.bin", np.full(200, 3))
    dataset, before = tokens.dataset(path, sequence=19, vocabulary=10), path.stat()
    with path.open("r+b") as file:
        file.seek(2 * 190)
        file.write((77).to_bytes(2, "little"))
    with refused("live.bin: was written since it was opened, so that token ...train on a copy"):
        dataset.batch(0, size=4)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    dataset.batch(0, size=4)
    with refused("live.bin: token 190 has id 77, but vocabulary=10...vocabulary=78 or more"):
        list(dataset.evaluation(size=4))


def test_a_file_is_known_by_its_length_and_its_ids(tmp_path):
    """So that a run does not go on with another under the same name."""
    prints = set()
    for ids in (np.full(200, 3), np.full(201, 3), np.arange(200) % 5):
        path = id_file(tmp_path / "one.bin", ids)
        prints.add(tokens.dataset(path, sequence=9).fingerprint)
        assert tokens.dataset(path, sequence=9).fingerprint in prints
    assert len(prints) == 3


def test_an_iterable_does_not_go_back():
    """Neither a generator nor a list, whose order may not come back; a function does."""
    for batches, kind in ((numbered(9), "generator"), (list(numbered(9)), "list")):
        dataset = iterable.dataset(batches, vocabulary=108)
        dataset.batch(5, size=SIZE)
        with refused(f"step 3 was asked for after step 5, but a {kind} is only read forward. "
                     "Ask for step 5 or later, or give a function"):  # fmt: skip
            dataset.batch(3, size=SIZE)
        assert dataset.batch(6, size=SIZE)["label"][0] == 72


def test_an_iterable_that_ends_says_how_many_steps_it_had():
    """Also when asked twice, and what it had remains."""
    dataset = iterable.dataset(numbered(4), vocabulary=48)
    for _ in range(2):
        with refused("step 6 was asked for, but the batches ended after 4. Train for 4 steps"):
            dataset.batch(6, size=SIZE)
    assert dataset.batch(3, size=SIZE)["label"][0] == 36


def test_sources_that_are_none_are_refused():
    """Nothing to iterate over, nothing in it, or the same iterator twice."""
    with refused("The batches are of type int, but must be an iterable of dictionaries"):
        iterable.dataset(cast(Any, 3), vocabulary=1)
    for empty in ([], list):
        with refused("The batches ended before the first, but at least 1 is needed"):
            iterable.dataset(empty, vocabulary=1)
    once = numbered(3)
    dataset = iterable.dataset(lambda: once, vocabulary=36)
    dataset.batch(1, size=SIZE)
    with refused("step 1: the batches were to start over...returned the iterator it had returned"):
        dataset.batch(0, size=SIZE)
    with refused('unit=\'words\'...unit="examples" or unit="tokens"'):
        iterable.dataset(numbered(1), vocabulary=12, unit="words")
    with refused("vocabulary=0 is too small"):
        iterable.dataset(numbered(1), vocabulary=0)


def test_batches_of_another_size_are_refused():
    """The field, both shapes and the step are named."""
    dataset = iterable.dataset(short_last(), vocabulary=24)
    with refused("step 1: field 'x' has shape (5, 2), not (12, 2)...5 rows and size=12"):
        dataset.batch(1, size=SIZE)


ONE = {"x": np.zeros((4, 3), np.float32)}


@pytest.mark.parametrize(
    "second, sentence",
    [
        ({"x": np.zeros((4, 5), np.float32)},
         "field 'x' is float32 of shape (5,), but at step 0 it was float32 of shape (3,)"),
        ({"x": np.zeros((4, 3))},
         "field 'x' is float64 of shape (3,), but at step 0 it was float32 of shape (3,)"),
        ({"y": np.zeros((4, 3))}, "fields are 'y', 'weight', but those of step 0 were 'x'"),
        ({"x": [[0.0]]}, "field 'x' is a list, but must be a numpy array"),
        ({"x": np.float32(0)}, "field 'x' is a float32, but must be a numpy array"),
        ([1], "the batch is a list, but must be a dictionary"),
        ({**ONE, "weight": np.ones(3, np.float32)},
         "field 'weight' has shape (3,) and field 'x' (4, 3)...Give each 4 rows"),
        ({**ONE, "weight": np.ones(4)}, "field 'weight' is float64, but must be float32"),
    ],
)  # fmt: skip
def test_batches_that_change_are_refused(second, sentence):
    """What step 0 had, every later step and every test batch must have."""
    dataset = iterable.dataset([ONE, second], vocabulary=1, test=[ONE, second])
    with refused("step 1: ..." + sentence):
        dataset.batch(1, size=4)
    with refused("test batch 1: ..." + sentence):
        list(dataset.evaluation(size=4))


def test_tokens_cannot_be_counted_without_a_field_of_them():
    """A weight for each token needs tokens."""
    with refused("step 0: the unit is tokens, but there is no field 'targets' or 'tokens'"
                 "...the fields are 'x'"):  # fmt: skip
        iterable.dataset([ONE], vocabulary=1, unit="tokens")


def test_an_evaluation_of_an_iterable_needs_batches_that_fit():
    """None given, none left, too large, or short before the last."""
    with refused("no test batches were given...dataset(batches, test=...)"):
        list(iterable.dataset([ONE], vocabulary=1).evaluation(size=4))
    with refused("test is a generator, which can be walked once"):
        iterable.dataset([ONE], vocabulary=1, test=(batch for batch in [ONE]))
    once = iter([ONE])
    dataset = iterable.dataset([ONE], vocabulary=1, test=lambda: once)
    assert len(list(dataset.evaluation(size=4))) == 1
    with refused("the test batches ended before the first"):
        list(dataset.evaluation(size=4))
    dataset = iterable.dataset([ONE], vocabulary=1, test=[ONE, ONE])
    with refused("test batch 0: field 'x' has shape (4, 3), not (2, 3)...at most 2"):
        list(dataset.evaluation(size=2))
    with refused("test batch 0: ...(4, 3), not (6, 3)...exactly 6, as only the last may be short"):
        list(dataset.evaluation(size=6))


def test_a_file_of_any_length_is_opened_in_seconds(tmp_path, monkeypatch):
    """Its largest id is looked for in places all over it; what the vocabulary is has to be said."""
    monkeypatch.setattr(tokens, "SCAN_TOKENS", 10)
    monkeypatch.setattr(tokens, "SCANNED_TOKENS", 1000)
    monkeypatch.setattr(tokens, "PRINTED_TOKENS", 1)
    file, read = tmp_path / "long.bin", []
    with file.open("wb") as out:
        out.truncate(2 * 1_000_000)
    with pytest.raises(DataError, match="Say vocabulary="):
        tokens.dataset(file, sequence=8)
    monkeypatch.setattr(tokens.TokenFile, "_read", _counted(tokens.TokenFile._read, read))
    data = tokens.dataset(file, sequence=8, vocabulary=3)
    assert 1000 < sum(read) < 3000
    assert data.batch(0, size=2)["tokens"].shape == (2, 8)


def _counted(function, read):
    """The function, and how many ids it read each time."""

    def counted(self, start, end):
        read.append(end - start)
        return function(self, start, end)

    return counted
