"""Exchanges: how attention sees a sequence that lies in pieces on devices. One file each."""
