"""Example batches, as a person would hand them in."""

import numpy as np


def images(rows=8, side=8, channels=3, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((rows, side, side, channels)).astype("float32"),
        "label": rng.integers(0, classes, rows).astype("int32"),
    }


def tokens(rows=8, length=16, vocabulary=64, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocabulary, (rows, length + 1)).astype("int32")
    return {"ids": ids[:, :-1], "next": ids[:, 1:]}


def vectors(rows=8, width=12, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((rows, width)).astype("float32"),
        "label": rng.integers(0, classes, rows).astype("int32"),
    }
