"""HLO: a compiled program's text read as records: computations, loops, collectives."""
