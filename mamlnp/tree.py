"""Trees: nested dicts, tuples (named ones too) and lists whose leaves are anything else.

None is a tree without leaves. Dicts are walked in the order of the first tree's keys.
"""

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

from .errors import ShapeError

SEQUENCES = (tuple, list)  # once: tuple | list takes longer to make than to ask


def map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """``f`` of every leaf of ``tree`` (and the leaves at the same places of ``rest``), as a tree.

    Raises:
        ShapeError: the trees have different shapes.

    >>> map(lambda a, b: a + b, {"w": 1, "b": (2, 3)}, {"w": 10, "b": (20, 30)})
    {'w': 11, 'b': (22, 33)}
    """
    if not rest:
        return _each(f, tree)
    if isinstance(tree, dict):
        for other in rest:
            if not isinstance(other, dict) or other.keys() != tree.keys():
                raise ShapeError(_different(tree, other))
        return _like(tree, {k: map(f, v, *(other[k] for other in rest)) for k, v in tree.items()})
    if isinstance(tree, tuple | list):
        for other in rest:
            if not isinstance(other, tuple | list) or len(other) != len(tree):
                raise ShapeError(_different(tree, other))
        children = [map(f, *children) for children in zip(tree, *rest, strict=True)]
        return _like(tree, children)
    if tree is None:
        for other in rest:
            if other is not None:
                raise ShapeError(_different(tree, other))
        return None
    return f(tree, *rest)


def items(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its path, in the order of :func:`leaves`.

    >>> list(items({"w": 1, "b": (2, 3)}))
    [("['w']", 1), ("['b'][0]", 2), ("['b'][1]", 3)]
    """
    if isinstance(tree, dict):
        for key, child in tree.items():
            yield from items(child, f"{path}[{key!r}]")
    elif isinstance(tree, tuple | list):
        for index, child in enumerate(tree):
            yield from items(child, f"{path}[{index}]")
    elif tree is not None:
        yield path, tree


def leaves(tree: Any) -> list[Any]:
    """The leaves in order."""
    out: list[Any] = []
    _collect(tree, out)
    return out


def unflatten(tree: Any, new_leaves: Any) -> Any:
    """A tree of ``tree``'s shape with ``new_leaves`` in its places.

    Raises:
        ShapeError: there are too few new leaves, or too many.

    >>> unflatten({"w": 1, "b": (2, 3)}, "xyz")
    {'w': 'x', 'b': ('y', 'z')}
    """
    remaining = iter(new_leaves)
    try:
        out = map(lambda _: next(remaining), tree)
    except StopIteration:
        raise ShapeError(_count(tree, "fewer")) from None
    for _ in remaining:
        raise ShapeError(_count(tree, "more"))
    return out


def broadcast(prefix: Any, tree: Any) -> Any:
    """A tree of ``tree``'s shape: ``prefix``, where a leaf stands for the whole subtree below it.

    Raises:
        ShapeError: the prefix goes deeper than the tree, or another way.

    >>> broadcast({"w": 1, "b": 2}, {"w": 0, "b": (0, 0)})
    {'w': 1, 'b': (2, 2)}
    """
    if isinstance(prefix, dict) and isinstance(tree, dict):
        if prefix.keys() != tree.keys():
            raise ShapeError(_different(tree, prefix))
        return _like(tree, {k: broadcast(prefix[k], v) for k, v in tree.items()})
    if isinstance(prefix, tuple | list) and isinstance(tree, tuple | list):
        if len(prefix) != len(tree):
            raise ShapeError(_different(tree, prefix))
        return _like(tree, [broadcast(p, t) for p, t in zip(prefix, tree, strict=True)])
    if isinstance(prefix, dict | tuple | list):
        raise ShapeError(_different(tree, prefix))
    return map(lambda _: prefix, tree)


def _each(f: Callable[[Any], Any], tree: Any) -> Any:
    """f of every leaf of one tree, which every compiled call asks for: plain dicts come first."""
    if type(tree) is dict:
        return {k: _each(f, child) for k, child in tree.items()}
    if isinstance(tree, dict):
        return _like(tree, {k: _each(f, child) for k, child in tree.items()})
    if isinstance(tree, SEQUENCES):
        return _like(tree, [_each(f, child) for child in tree])
    return None if tree is None else f(tree)


def _collect(tree: Any, out: list[Any]) -> None:
    if isinstance(tree, dict):
        for child in tree.values():
            _collect(child, out)
    elif isinstance(tree, SEQUENCES):
        for child in tree:
            _collect(child, out)
    elif tree is not None:
        out.append(tree)


def _like(tree: Any, children: Any) -> Any:
    """The children in a container of the tree's type."""
    if isinstance(tree, dict):
        if type(tree) is dict:
            return children
        out = copy(tree)  # with what it has besides, such as a defaultdict's factory
        out.update(children)
        return out
    return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)


def _count(tree: Any, compared: str) -> str:
    return (
        f"tree.unflatten: there are {compared} new leaves than the tree's {len(leaves(tree))}. "
        "Pass one for each."
    )


def _different(tree: Any, other: Any) -> str:
    def outline(t: Any) -> str:
        if isinstance(t, dict):
            return f"dict with keys {list(t)}"
        if isinstance(t, tuple | list):
            return f"{type(t).__name__} of length {len(t)}"
        return type(t).__name__

    return (
        f"tree: the trees differ: {outline(tree)} against {outline(other)}. "
        "Pass trees with the same keys and lengths."
    )
