"""Explain: why each collective of a program is there, what its memory holds, who does its work."""
