"""Derivatives to any number of digits, by mpmath: what an op's rules are held against far out."""

import functools
import itertools
import math

import mpmath
import numpy as np

STEP = mpmath.mpf("1e-25")  # relative to the argument where it is below 1; its square is the error


def digits(point):
    """So many that, after three steps near a point, the 400 are left that 1 + 1e-308 takes."""
    sizes = (abs(math.log10(abs(x))) for x in point if x)
    return 400 + 3 * (25 + math.ceil(max(sizes, default=0)))


@functools.cache
def function(text, names):
    """A function of mpmath's numbers from its text."""
    return eval(f"lambda {', '.join(names)}: {text}", dict(vars(mpmath)))


def partial(f, point, orders):
    """f's partial derivative, so many times by each argument, by nested central differences."""
    for i, order in enumerate(orders):
        if order:
            h = STEP * min(1, abs(point[i]) or 1)
            less = [n - (j == i) for j, n in enumerate(orders)]
            ends = [[*point[:i], point[i] + step, *point[i + 1 :]] for step in (h, -h)]
            return (partial(f, ends[0], less) - partial(f, ends[1], less)) / (2 * h)
    return f(*point)


def partials(count, most=3):
    """The orders of all partial derivatives of a function of so many arguments."""
    every = itertools.product(range(most + 1), repeat=count)
    return sorted((o for o in every if sum(o) <= most), key=sum)


def is_right(got, right, scale, tolerance, smallest, largest):
    """Is a number within a tolerance of what it ought to be?

    What is below the smallest normal number may be lost, and above the largest there is none.
    """
    if abs(right) > largest:
        return not np.isfinite(got) or abs(got) > 0.99 * largest
    if not np.isfinite(got):
        return False
    error = abs(mpmath.mpf(float(got)) - right)
    return error <= smallest + tolerance * abs(right) or error <= tolerance * scale()


def around(f, point, orders, step=0):
    """How large a derivative is where an argument is a percent larger or smaller, or by a step:
    what counts near a zero of it, where its terms cancel."""
    found = []
    for i, sign in itertools.product(range(len(point)), (-1, 1)):
        moved = point[i] + sign * max(abs(point[i]) / 100, step)
        found.append(abs(partial(f, [*point[:i], moved, *point[i + 1 :]], orders)))
    return max(found)


MAGNITUDES = [
    *(float(f"1e{n}") for n in (-300, -200, -150, -100, -50, -37, -20, -16, -10, -8, -5, -3, -1)),
    0.3, 0.7, 1.0, 2.0, 3.0, 5.0, 9.0109138, 12.0, 17.0, 20.0, 30.0, 37.0, 40.0, 88.0, 300.0,
    709.0, 745.0, 1000.0, *(float(f"1e{n}") for n in (4, 8, 16, 20, 37, 50, 100, 150, 200, 300)),
]  # fmt: skip


def far_points(domain, dtype, rng, drawn=12):
    """Numbers of a domain, from the smallest to the largest of a type, near its ends too."""
    if domain.signed:
        above = far_points(domain._replace(signed=False), dtype, rng, drawn)
        return np.concatenate([-above, above])
    sizes = [*MAGNITUDES, *10 ** rng.uniform(-300, 300, drawn), *10 ** rng.uniform(-3, 3, drawn)]
    numbers = np.concatenate([sizes, np.negative(sizes)])
    ends = [end for end in (domain.low, domain.high) if np.isfinite(end)]
    numbers = np.concatenate([numbers, *(end + numbers for end in ends)])
    info = np.finfo(dtype)
    fits = (np.abs(numbers) > info.tiny) & (np.abs(numbers) < info.max)
    numbers = np.unique(numbers[fits].astype(dtype))
    return numbers[(numbers > domain.low) & (numbers < domain.high)]
