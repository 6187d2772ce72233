"""Which classes are trained on, validated on and tested on: always from a sorted list of names.

A split maps "train", "validation" and "test" to indices into that list, in increasing order.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from . import counted_rng

Split = dict[str, npt.NDArray[np.int64]]

VINYALS_VALIDATION_ALPHABETS = (
    "Armenian",
    "Bengali",
    "Early_Aramaic",
    "Hebrew",
    "Mkhedruli_(Georgian)",
)
VINYALS_SIZES = (1028, 172, 423)


def vinyals_split(names: Sequence[str]) -> Split:
    """The fixed split of Omniglot that the community compares on.

    Validation is five alphabets; test is the last 423 characters, which begin inside the alphabet
    Gurmukhi; training is the rest.

    Differs from the paper, whose split is drawn at random: see ``random_split``.

    Args:
        names: ``part/alphabet/character`` of all 1623 characters, sorted.

    Raises:
        DataError: where the names do not give 1028, 172 and 423 characters.
    """
    indices = np.arange(len(names))
    in_test = indices >= len(names) - VINYALS_SIZES[2]
    in_validation = np.array(
        [name.split("/")[1] in VINYALS_VALIDATION_ALPHABETS for name in names], dtype=bool
    )
    split = {
        "train": indices[~in_validation & ~in_test],
        "validation": indices[in_validation & ~in_test],
        "test": indices[in_test],
    }
    sizes = tuple(len(part) for part in split.values())
    if sizes != VINYALS_SIZES:
        raise DataError(
            f"vinyals_split: expected {VINYALS_SIZES} characters to train, validate and test on, "
            f"but {len(names)} classes give {sizes}. Use the whole of Omniglot or a random split."
        )
    return split


def random_split(
    names: Sequence[str], *, seed: int = 0, sizes: tuple[int, int, int] = (1100, 100, 423)
) -> Split:
    """A split of the given sizes, drawn at random: the same for a seed on every machine.

    The default sizes are those of Finn et al. 2017, section 5.2: 1200 training characters, of
    which the authors' code holds out 100 for validation, and the remaining 423.

    Args:
        names: the classes, sorted.
        seed: the seed of the draw.
        sizes: how many classes to train, validate and test on.

    Raises:
        DataError: where there are fewer classes than that.

    >>> split = random_split(["a", "b", "c", "d"], sizes=(2, 1, 1))
    >>> [len(part) for part in split.values()]
    [2, 1, 1]
    """
    if min(sizes) < 0 or sum(sizes) > len(names):
        raise DataError(
            f"random_split: sizes {sizes} ask for {sum(sizes)} classes but there are {len(names)}. "
            f"Give three sizes that add up to {len(names)} at most."
        )
    order = counted_rng(seed, "init").permutation(len(names))
    train, validation, test, _ = (np.sort(part) for part in np.split(order, np.cumsum(sizes)))
    return {"train": train, "validation": validation, "test": test}
