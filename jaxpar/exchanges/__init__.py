"""Exchanges: how attention sees a sequence that lies in pieces on several devices. One file each."""
