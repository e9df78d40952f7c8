"""Keys into a tree as one path for people, `blocks/0/kernel`; no two of a tree are the same."""

from collections import Counter
from collections.abc import Iterable


def paths_of(keys: Iterable[tuple[object, ...]]) -> list[str]:
    """A path for each leaf of a tree, given its keys.

    A key that has a slash in it is quoted where another leaf would else have the same path.

    >>> paths_of([("a", 0), ("b/c",)])
    ['a/0', 'b/c']
    >>> paths_of([("a", "b"), ("a/b",)])
    ['a/b', "'a/b'"]
    """
    leaves = [tuple(map(str, own)) for own in keys]
    plain = ["/".join(own) for own in leaves]
    count = Counter(plain)
    return [
        path if count[path] == 1 else "/".join(repr(key) if "/" in key else key for key in own)
        for path, own in zip(plain, leaves, strict=True)
    ]
