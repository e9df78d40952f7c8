"""Small functions that use every primitive of the tables, in its various forms.

Each is (function, its arguments): a tuple of sizes stands for an array of float32.
"""

from __future__ import annotations

from shardy.cases import contract, convolution, elementwise, index, matrices, reshape

_FILES = (elementwise, reshape, contract, convolution, matrices, index)
CASES = {name: case for file in _FILES for name, case in file.CASES.items()}
assert len(CASES) == sum(len(file.CASES) for file in _FILES), "two cases have one name"
