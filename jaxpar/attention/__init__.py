"""Exchanges: how attention sees a sequence that is sharded over devices. One file each."""
