"""Colours that people who tell few colours apart can tell, and that stay apart in grey print.

Of kinds of things the eight of Okabe and Ito (Color Universal Design, 2008); of many shards in
order a ramp of one hue's lightness and two hues, after cividis (Nunez, Anderton, Renslow 2018).
"""

KINDS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#777777")
"""One a kind, in this order; the last is for what is left."""

RAMP = ((0, 34, 78), (62, 81, 107), (124, 123, 120), (187, 172, 109), (254, 232, 56))
"""Red, green, blue of equally far points of the ramp."""


def shard_colour(number: int, count: int) -> str:
    """The colour of one of several shards: of few each has its own, of many a place on the ramp.

    >>> shard_colour(1, 8), shard_colour(0, 64)
    ('#E69F00', '#00224e')
    """
    if count <= len(KINDS):
        return KINDS[number % len(KINDS)]
    at = number / max(1, count - 1) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    share = at - low
    mixed = (round(a + (b - a) * share) for a, b in zip(RAMP[low], RAMP[low + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def ink(colour: str) -> str:
    """Black or white, whichever is read better on a colour.

    >>> ink("#0072B2"), ink("#F0E442")
    ('#ffffff', '#000000')
    """
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    light = sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#ffffff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000000"
