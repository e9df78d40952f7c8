"""HTML as a tree: whatever a person named is text in it, and can become no markup."""

import xml.etree.ElementTree as tree
from collections.abc import Iterable

from jaxpar.core.errors import visible

Element = tree.Element
Child = Element | str | None | Iterable["Child"]


def element(tag: str, *children: "Child", **attributes: object) -> Element:
    """An element of the tree.

    Args:
        tag: its name.
        children: text, elements or several of them; None is left out.
        attributes: by name, of which `_` becomes `-`; one that ends in `_` is without it, so that
            `class_` can be said. None is left out, True has no value.

    >>> render(element("p", "a < b", element("b", "c"), class_="note"))
    '<p class="note">a &lt; b<b>c</b></p>'
    """
    made = tree.Element(tag)
    for name, value in attributes.items():
        if value is not None and value is not False:
            written = "" if value is True else str(value)
            made.set(name.removesuffix("_").replace("_", "-"), visible(written))
    for child in children:
        _append(made, child)
    return made


def render(root: Element) -> str:
    """An element as HTML, everything in it escaped."""
    return tree.tostring(root, encoding="unicode", method="html")


def raw(tag: str, text: str, **attributes: object) -> Element:
    """An element whose text is code of our own or JSON, which a page must not read as text."""
    made = element(tag, **attributes)
    made.text = text
    return made


def coded(sentence: str) -> list[Child]:
    """A sentence of ours, what stands between backticks in it as code.

    >>> render(element("p", coded("sharded over `data`: 2 ways")))
    '<p>sharded over <code>data</code>: 2 ways</p>'
    """
    parts = sentence.split("`")
    if len(parts) % 2 == 0:  # one of them has no other
        return [sentence]
    return [element("code", part) if n % 2 else part for n, part in enumerate(parts)]


def words(root: Element) -> str:
    """All text of an element, without its markup."""
    return " ".join("".join(root.itertext()).split())


def _append(parent: Element, child: "Child") -> None:
    """Put text, an element or several at the end of another."""
    if child is None:
        return
    if isinstance(child, tree.Element):
        parent.append(child)
    elif isinstance(child, str):
        text = "\n".join(map(visible, child.split("\n")))
        if len(parent):
            parent[-1].tail = (parent[-1].tail or "") + text
        else:
            parent.text = (parent.text or "") + text
    else:
        for one in child:
            _append(parent, one)
