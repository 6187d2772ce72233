"""Kernels' small part of Python computes as machine code what Python computes."""

import ctypes
import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mamlnp.backend import machine_code

HEADER = """
import math
import numpy as np
from mamlnp.backend.memory import *
f4, f8, i8 = np.float32, np.float64, np.int64
number, width = np.float32, 3
"""
PROGRAMS = {
    "loops": """
def kernel(row):
    at = 0
    for i in range(load_i8(row, 0, 0)):
        for j in range(2, 9, 3):
            if (i + j) % 2:
                continue
            store_i8(row, 4 + at % 8, 1, i * 10 + j)
            at += 1
    k = load_i8(row, 1, 0)
    while k > -40 and at < 60:
        k, at = k - width, at + 2
    store_i8(row, 12, 1, k)
    store_i8(row, 13, 1, at)
""",
    "whole numbers": """
def kernel(row):
    a, b = load_i8(row, 0, 0), load_i8(row, 1, 0)
    b = b if b else 7
    store_i8(row, 4, 1, a // b)
    store_i8(row, 5, 1, a % b)
    store_i8(row, 6, 1, min(a, b) - max(b, a) * 2 + abs(a))
    a, b = b, a
    store_i8(row, 7, 1, -a + b)
    store_i8(row, 8, 1, i8(0 <= a < b) + (2 if a == b or not a > 3 else 5))
    best, place = (a, 1) if a > b else (b, 2)
    store_i8(row, 9, 1, best + place)
    far = 0
    far |= i8(a > 0)
    store_i8(row, 10, 1, far)
""",
    "numbers": """
def kernel(row):
    a, b = f8(load_i8(row, 0, 0)), f8(load_i8(row, 1, 0))
    x = f4(a) / f4(b)
    store_f8(row, 4, 1, f8(x))
    store_f8(row, 5, 1, a / b if a != a or b > 0.5 else math.sqrt(abs(a)))
    store_f8(row, 6, 1, math.sin(a) + math.pow(abs(a), 0.3) + math.expm1(f8(x != x)))
    store_i8(row, 7, 1, math.isfinite(x) + i8(bool(a)) * 2 + i8(x < x) * 4)
    store_i8(row, 10, 1, i8(x != x) + 2 * i8(bool(x)))
    store_f8(row, 8, 1, np.inf if a < b else -np.inf)
    store_i8(row, 9, 1, i8(a * 1.5))
""",
    "calls": """
def doubled(row, at, x):
    for i in range(at, at + 3):
        store_i8(row, i, 1, 2 * x + i)


def kernel(row):
    doubled(row, 4, load_i8(row, 0, 0))
    if load_i8(row, 1, 0) > 0:
        doubled(row, 8, 5)
    elif load_i8(row, 0, 0) > 0:
        doubled(row, 11, width)
    else:
        doubled(row, 12, 1)
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
@given(st.integers(-30, 30), st.integers(-30, 30))
def test_it_computes_what_python_computes(name, a, b):
    text = PROGRAMS[name]
    code = compiled(text)
    mine, theirs = (np.zeros(16, np.int64) for _ in "12")
    for row in (mine, theirs):
        row[:2] = a, b
    ctypes.CFUNCTYPE(None, ctypes.c_int64)(code.address)(mine.ctypes.data)
    run_python(text, theirs)
    same = mine == theirs
    close = np.isclose(mine.view(np.float64), theirs.view(np.float64), 1e-15, 0, equal_nan=True)
    assert (same | close).all(), (mine, theirs)


known: dict = {}


def compiled(text):
    if text not in known:
        symbol = "kernel_" + hashlib.sha256(text.encode()).hexdigest()[:8]
        known[text] = machine_code.made(HEADER + text, "kernel", symbol)
    return known[text]


def run_python(text, row):
    doubles = row.view(np.float64)

    def store_f8(base, index, scope, x):
        doubles[index] = x

    names: dict = {}
    exec(HEADER, names)
    names |= {
        "load_i8": lambda base, index, scope: np.int64(row[index]),
        "store_i8": lambda base, index, scope, x: row.__setitem__(index, x),
        "store_f8": store_f8,
    }
    exec(text, names)
    with np.errstate(all="ignore"):
        names["kernel"](0)


def test_what_was_saved_is_the_same_code():
    made = compiled(PROGRAMS["calls"])
    symbol = "kernel_" + hashlib.sha256(PROGRAMS["calls"].encode()).hexdigest()[:8]
    again = machine_code.loaded(made.saved(), symbol)
    rows = []
    for code in (made, again):
        row = np.zeros(16, np.int64)
        row[:2] = 4, -1
        ctypes.CFUNCTYPE(None, ctypes.c_int64)(code.address)(row.ctypes.data)
        rows.append(row)
    np.testing.assert_array_equal(*rows)
    assert rows[0][11:14].tolist() == [2 * 3 + 11, 2 * 3 + 12, 2 * 3 + 13]


def test_threads_that_read_at_once():
    """Finalizers, which run while a tree is made, let another thread begin its own."""

    class Slow:
        def __init__(self):
            self.me = self

        def __del__(self):
            sum(range(200))

    def work(_):
        for _ in range(100):
            _garbage = [Slow() for _ in range(20)]
            machine_code.parsed(PROGRAMS["loops"])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize(
    "line", ["x = [1]", "with row: pass", "x = 1 if row else 2.5", "x = unknown", "x = row ** 2"]
)
def test_what_there_is_not_fails(line):
    with pytest.raises((AttributeError, KeyError, AssertionError, TypeError)):
        machine_code.made(f"{HEADER}\ndef kernel(row):\n    {line}\n", "kernel", "kernel_wrong")
