"""Naming: the dims of a model that nobody annotated, found by tracing its loss.

`relate` walks the jaxpr and finds which dims are the same; `judge` says from how each is used what
role it has; `christen` gives it a name; `spoken` is the loss again, now saying those names.
"""
