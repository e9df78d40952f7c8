"""Cases of convolutions, and of their gradients, which are convolutions too."""

from __future__ import annotations

from functools import partial
from typing import Any

from jax import lax

from shardy.cases.arguments import gradients


def _conv(lhs, rhs, form=("NHWC", "HWIO", "NHWC"), strides=(1, 1), padding: Any = "SAME", **how):
    function = partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=form,
        **how,
    )
    return (function, lhs, rhs)


_KINDS = {
    "same": _conv((2, 8, 6, 3), (3, 3, 3, 5)),
    "valid": _conv((2, 8, 6, 3), (3, 3, 3, 5), padding="VALID"),
    "channels first": _conv((2, 3, 8, 6), (5, 3, 3, 3), ("NCHW", "OIHW", "NCHW")),
    "strided": _conv((2, 8, 6, 3), (3, 3, 3, 5), strides=(2, 3)),
    "patches": _conv((2, 8, 6, 3), (2, 3, 3, 5), strides=(2, 3), padding="VALID"),
    "dilated": _conv((2, 8, 6, 3), (3, 2, 3, 5), rhs_dilation=(2, 2)),
    "transposed": _conv((2, 8, 6, 3), (3, 3, 3, 5), padding=((1, 1), (1, 1)), lhs_dilation=(2, 2)),
    "pointwise": _conv((2, 8, 6, 3), (1, 1, 3, 5)),
    "pointwise strided": _conv((2, 8, 6, 3), (1, 1, 3, 5), strides=(2, 2)),
    "whole window": _conv((2, 8, 6, 3), (8, 6, 3, 5), padding="VALID"),
    "depthwise": _conv((2, 8, 6, 4), (3, 3, 1, 4), feature_group_count=4),
    "depthwise with a multiplier": _conv((2, 8, 6, 4), (3, 3, 1, 8), feature_group_count=4),
    "grouped": _conv((2, 8, 6, 4), (3, 3, 2, 6), feature_group_count=2),
    "grouped batch": _conv((4, 8, 6, 3), (3, 3, 3, 6), batch_group_count=2),
    "batch of groups of one": _conv((4, 8, 6, 3), (3, 3, 3, 4), batch_group_count=4),
    "one channel": _conv((2, 8, 6, 1), (3, 3, 1, 5)),
    "along one dim": _conv((2, 8, 3), (5, 3, 4), ("NWC", "WIO", "NWC"), strides=(1,)),
}

CASES = {
    **{f"convolution {name}": case for name, case in _KINDS.items()},
    **{f"gradients of convolution {name}": gradients(case) for name, case in _KINDS.items()},
}
