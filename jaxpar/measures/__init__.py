"""Measures: what can be learnt from a program, each a function from a Program to a small record."""
