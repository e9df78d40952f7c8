"""Schedules: in which order the stages of a pipeline work on microbatches. One file each."""
