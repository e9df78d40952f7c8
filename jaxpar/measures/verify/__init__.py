"""Verify: does a layout compute what one device computes, array by array."""
