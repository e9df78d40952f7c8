"""Data: the batches a model is trained and tested on; one file is one dataset."""

from jaxpar.data import iterable as iterable
