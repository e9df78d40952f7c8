"""What a person may say of a model beside its module, its loss and its batch."""

from collections.abc import Mapping
from typing import Any

from jaxpar.core.errors import expect
from jaxpar.data.record import Dataset


def check_arguments(name: Any, dims: Any, roles: Any, data: Any) -> None:
    """Refuse arguments of `jaxpar.model` of another kind than it takes; see there."""
    expect("model's name", name, str | None, "give a word")
    expect("model's data", data, str | Dataset | None, "give a name, or a Dataset of your batches")
    for what, table in (("dims", dims), ("roles", roles)):
        expect(f"model's {what}", table, Mapping | None, "give a dictionary by path or by dim")
    for path, names in (dims or {}).items():
        expect(f"dims of '{path}'", names, tuple | list, "name each of its dims: ('embed', None)")
        for own in names:
            expect(f"a name in dims of '{path}'", own, str | None, "give a word, or None")
    for dim, role in (roles or {}).items():
        expect(f"the role of '{dim}'", role, str, "give the name of a role")
