"""Jaxprs: how the dims of each primitive relate, and the one interpreter that evaluates them."""
