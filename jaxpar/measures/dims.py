"""The dims of a layout by class: what each is called and does, its size, and how it is sharded."""

from jaxpar.core.mesh import axes_of
from jaxpar.layout.record import Layout
from jaxpar.models.record import role_of


def dims_of_layout(layout: Layout) -> list[dict]:
    """One JSON-ready dict a class of dims, in the order in which the model's arrays have them."""
    model = layout.model
    if model.named:
        rows = [
            {
                "name": dim.name,
                "role": dim.role,
                "size": dim.size,
                "places": list(dim.places),
                "whole_because": dim.whole_because or None,
                "whole_at": dim.whole_at or None,
            }
            for dim in model.named
        ]
    else:
        rows = list(_annotated(layout).values())
    for number, row in enumerate(rows):
        row["class"] = number
        row["axes"] = list(axes_of(layout.place_of((row["name"],))[0]))
    return rows


def _annotated(layout: Layout) -> dict[tuple[str, int], dict]:
    """Of a model whose author named its dims: dims of one name and size are one class."""
    arrays = [
        *(
            (path, a.dims, a.shape)
            for g in (layout.parameters, layout.state)
            for path, a in g.items()
        ),
        *((f"batch/{name}", f.dims, f.shape) for name, f in layout.model.batch.items()),
    ]
    rows: dict[tuple[str, int], dict] = {}
    for path, dims, shape in arrays:
        for at, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            row = rows.setdefault(
                (dim, size),
                {
                    "name": dim,
                    "role": role_of(layout.model, dim),
                    "size": size,
                    "places": [],
                    "whole_because": None,
                    "whole_at": None,
                },
            )
            row["places"].append(f"{path}[{at}]")
    return rows
