"""Trees: nested dicts, tuples and lists."""

import operator
import re
from collections import OrderedDict, defaultdict
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mamlnp import array, grad, tree
from mamlnp.errors import ShapeError


class Pair(NamedTuple):
    x: object
    y: object


trees = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=2)),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), children, max_size=3),
        st.builds(Pair, children, children),
    ),
    max_leaves=8,
)


@given(trees)
def test_a_map_of_the_identity_changes_nothing(t):
    out = tree.map(lambda leaf: leaf, t)
    assert out == t
    assert type(out) is type(t)


@given(trees)
def test_leaves_items_and_unflatten_agree(t):
    leaves = tree.leaves(t)
    assert [leaf for _, leaf in tree.items(t)] == leaves
    assert tree.unflatten(t, leaves) == t
    numbered = tree.unflatten(t, range(len(leaves)))
    assert tree.leaves(numbered) == list(range(len(leaves)))
    assert len({path for path, _ in tree.items(t)}) == len(leaves)


@given(trees)
def test_a_path_leads_to_its_leaf(t):
    for path, leaf in tree.items(t, "t"):
        assert eval(path, {"t": t}) == leaf


@given(trees)
def test_maps_of_several_trees_meet_leaf_by_leaf(t):
    twice = tree.map(lambda a, b, c: (a, b, c), t, t, tree.map(repr, t))
    flat = [(a, a, repr(a)) for a in tree.leaves(t)]
    collected = []
    tree.map(lambda a: collected.append(a), tree.map(str, twice))
    assert collected == [str(part) for triple in flat for part in triple]


@given(trees)
def test_one_leaf_stands_for_a_whole_tree(t):
    assert tree.leaves(tree.broadcast(7, t)) == [7] * len(tree.leaves(t))
    assert tree.broadcast(t, t) == t


def test_types_are_kept():
    out = tree.map(operator.neg, {"a": Pair(1, [2, (3,)]), "b": None})
    assert out == {"a": Pair(-1, [-2, (-3,)]), "b": None}
    assert type(out["a"]) is Pair
    assert tree.map(operator.neg, OrderedDict(a=1)) == {"a": -1}


def test_dicts_are_walked_in_the_order_of_the_first():
    out = tree.map(operator.sub, {"b": 1, "a": 2}, {"a": 20, "b": 10})
    assert list(out.items()) == [("b", -9), ("a", -18)]


def test_sequences_of_other_types_meet():
    assert tree.map(operator.add, Pair(1, 2), [10, 20]) == Pair(11, 22)


def test_a_prefix_stands_for_what_is_below():
    params = {"w": [0, 0], "b": Pair(0, (0,)), "none": None}
    assert tree.broadcast({"none": 4, "b": (2, 3), "w": 1}, params) == {
        "w": [1, 1],
        "b": Pair(2, (3,)),
        "none": None,
    }


@pytest.mark.parametrize(
    "a, b, line",
    [
        ({"w": 1}, {"b": 1}, "dict with keys ['w'] against dict with keys ['b']"),
        ({"w": 1}, {"w": 1, "b": 1}, "dict with keys ['w'] against dict with keys ['w', 'b']"),
        ({"w": 1}, (1,), "dict with keys ['w'] against tuple of length 1"),
        ((1, 2), [1], "tuple of length 2 against list of length 1"),
        ([1], 1, "list of length 1 against int"),
        ({"w": (1, 2)}, {"w": (1, 2, 3)}, "tuple of length 2 against tuple of length 3"),
        ({"w": None}, {"w": 1}, "NoneType against int"),
        ((), 1, "tuple of length 0 against int"),
    ],
)
def test_trees_that_differ_are_refused(a, b, line):
    with pytest.raises(ShapeError, match="^tree: the trees differ: " + re.escape(line)):
        tree.map(lambda *leaves: leaves, a, b)


@pytest.mark.parametrize(
    "prefix, t",
    [
        ({"w": 1}, {"b": 1}),
        ((1, 2), (1, 2, 3)),
        ({"w": 1}, 0),
        ((1,), 0),
        ((1, 2), {"w": 1, "b": 2}),
        ({"w": {"deep": 1}}, {"w": 0}),
    ],
)
def test_a_prefix_that_is_none_is_refused(prefix, t):
    with pytest.raises(ShapeError, match=r"^tree: the trees differ"):
        tree.broadcast(prefix, t)


@pytest.mark.parametrize(
    ("leaves", "compared"), [([], "fewer"), ([1, 2], "fewer"), ("abcd", "more")]
)
def test_unflatten_wants_every_leaf_once(leaves, compared):
    with pytest.raises(ShapeError, match=f"there are {compared} new leaves than the tree's 3"):
        tree.unflatten({"w": 0, "b": (0, 0)}, leaves)


def test_arrays_are_leaves():
    params = {"w": np.ones((2, 2)), "b": array([1.0, 2.0])}
    assert [x.shape for x in tree.leaves(params)] == [(2, 2), (2,)]
    gradient = grad(lambda p: (p["w"] @ p["b"]).sum())(params)
    assert tree.map(lambda x: x.numpy().tolist(), gradient) == {"w": [[1, 2], [1, 2]], "b": [2, 2]}


def test_a_dict_of_another_type_stays_one() -> None:
    ordered = OrderedDict(b=1, a=2)
    assert tree.map(lambda x: -x, ordered) == OrderedDict(b=-1, a=-2)
    assert type(tree.map(lambda x: x, ordered)) is OrderedDict
    assert type(tree.broadcast(0, {"x": ordered})["x"]) is OrderedDict
    counted = defaultdict(list, a=1)
    mapped = tree.map(lambda x: x + 1, counted)
    assert mapped == {"a": 2} and mapped["new"] == [] and "new" not in counted
    assert type(grad(lambda p: p["a"] * p["b"])(OrderedDict(b=1.0, a=2.0))) is OrderedDict
