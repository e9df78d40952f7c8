"""Handwritten digits: 1,797 real 8 by 8 images in ten classes, from scikit-learn, no download.

Promises one fixed split, 1,437 images to train on and 360 to test on, each class in proportion;
in training every image is seen exactly once an epoch, in an order that (seed, epoch) decides.
Raises DataError when scikit-learn is not installed.
"""

from functools import lru_cache

import numpy as np

from jaxpar.data.record import Batch, DataError, Dataset, generator, in_order, whole_number

TEST_SIZE = 360
BRIGHTEST = 16.0  # the images count 0 to 16 dark pixels in each 4 by 4 block


def dataset(seed: int = 0) -> Dataset:
    """Return the digits: `image` (8, 8, 1) in 0 to 1, `label` 0 to 9; `seed` decides the split."""
    seed = whole_number("seed", seed, least=0)
    image, label = _load()
    test = _held_out(label, seed)
    train = np.setdiff1d(np.arange(len(label)), test)

    def read(examples: np.ndarray) -> Batch:
        return {
            "image": image[examples],
            "label": label[examples],
            "weight": np.ones(len(examples), np.float32),
        }

    def draw(step: int, size: int, seed: int, rows: np.ndarray) -> Batch:
        # Epochs follow one another without a gap: a batch may hold the end of one and the start
        # of the next, so no image is dropped when the size does not divide the split.
        place = step * size + rows
        epochs, index = place // len(train), place % len(train)
        picked = np.empty(len(rows), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            picked[here] = train[_order(len(train), seed, int(epoch))[index[here]]]
        return read(picked)

    return Dataset(
        name="digits",
        fields={"image": ((8, 8, 1), "float32"), "label": ((), "int32"), "weight": ((), "float32")},
        vocabulary=10,
        unit="examples",
        train_size=len(train),
        test_size=len(test),
        draw=draw,
        walk=in_order(len(test), lambda places: read(test[places])),
    )


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Return every image and label, as float32 (1797, 8, 8, 1) and int32 (1797,)."""
    try:
        from sklearn.datasets import load_digits  # here, since it takes a second to import
    except ModuleNotFoundError as missing:
        raise DataError(
            f"The digits come with scikit-learn, but its import found no module "
            f"{missing.name!r}. Install it with: pip install scikit-learn."
        ) from missing
    pixels, label = load_digits(return_X_y=True)
    image = (pixels / BRIGHTEST).astype(np.float32).reshape(-1, 8, 8, 1)
    return image, label.astype(np.int32)


def _held_out(label: np.ndarray, seed: int) -> np.ndarray:
    """Return which examples are for testing, in ascending order, each class in proportion."""
    shuffled = generator(seed, 0).permutation(len(label))
    by_class = shuffled[np.argsort(label[shuffled], kind="stable")]
    # Evenly spaced along examples sorted by class: a class of n gives its share to within one.
    evenly = np.arange(TEST_SIZE) * len(label) // TEST_SIZE
    # Sorted back, or the first test batches would hold zeros only.
    return np.sort(by_class[evenly])


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which `epoch` sees the `count` training examples."""
    order = generator(seed, epoch).permutation(count)
    order.flags.writeable = False  # shared by every caller of the cache
    return order
