"""Strokes: made-up alphabets in made-up hands, drawn in the likeness of Omniglot.

A character is a few strokes, a stroke a few arcs of a pen that moves on and turns: straight lines,
bows, loops and corners. An alphabet is a style: how many strokes, how curved, which strokes come
again in many of its characters. A hand has its own slant, size, pen and neatness, and draws no
character twice alike.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from . import counted_rng
from .fewshot import ClassImages, with_turns
from .omniglot import DRAWN_SIZE, FILTERS, SIZE

Floats = npt.NDArray[np.float64]

ALPHABETS = {"test": 15, "validation": 5, "train": 60}
CHARACTERS = 28  # of an alphabet
HANDS = 20  # that draw each character of an alphabet
POOL = 12  # strokes of an alphabet, of which its characters are made
DOTS = 48  # of the pen on each arc
PENS = (3, 4, 5, 6)  # widths in pixels


class Stroke(NamedTuple):
    """A way of the pen.

    Attributes:
        arcs: (..., arcs, 3): the length of each, how far it bends, and how far the pen turns before
            it, in radians.
        on: which of the dots drawn before this stroke lies on.
        at: which of its own dots lies there.
        beside: (..., 2), how far from there.
    """

    arcs: Floats
    on: int
    at: int
    beside: Floats


Character = list[Stroke]


def load_strokes(
    *, seed: int = 0, alphabets: int = ALPHABETS["train"], rotations: bool = True
) -> dict[str, ClassImages]:
    """Made-up characters at 28x28, ink 255 on 0, as "train", "validation" and "test" classes.

    They are drawn anew, in seconds, the same for a seed each time; nothing is read or kept.

    Args:
        seed: of all alphabets.
        alphabets: how many to train on, of 28 characters each. Validation has 5 others and test 15,
            the same however many these are.
        rotations: whether tasks turn each class by a multiple of 90 degrees, as Omniglot's.

    Returns:
        Classes named ``alphabet/character``, of 20 images each: one for each of the alphabet's
        hands. All share one array of images, uint8.

    >>> data = load_strokes(alphabets=2, rotations=False)
    >>> {split: len(classes.names) for split, classes in data.items()}
    {'train': 56, 'validation': 140, 'test': 420}
    >>> data["train"].images.shape, data["test"].names[0]
    ((12320, 28, 28, 1), 'alphabet00/character00')
    """
    numbers, end = {}, 0
    for split, num in (ALPHABETS | {"train": alphabets}).items():
        numbers[split] = np.arange(end * CHARACTERS, (end + num) * CHARACTERS)
        end += num
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # Pillow resizes without the GIL
        drawn = list(threads.map(lambda n: draw_alphabet(seed, n), range(end)))
    shared = np.concatenate(drawn).reshape(-1, *SIZE, 1)
    if rotations:
        shared = with_turns(shared)
    return {
        split: ClassImages(
            shared,
            tuple(f"alphabet{n // CHARACTERS:02}/character{n % CHARACTERS:02}" for n in found),
            first=HANDS * found,
            counts=np.full(len(found), HANDS),
            rotations=rotations,
        )
        for split, found in reversed(numbers.items())
    }


def draw_alphabet(seed: int, n: int) -> npt.NDArray[np.uint8]:
    """Alphabet number ``n`` of a seed: (characters, hands, 28, 28), ink 255 on 0."""
    rng = counted_rng(seed, "strokes", n)
    characters, hands = make_alphabet(rng), make_hands(rng)
    return np.stack([render(character, hands, rng) for character in characters])


# ---- characters


def make_alphabet(rng: np.random.Generator) -> list[Character]:
    """The characters of an alphabet, as they are meant to be."""
    curved, strokes = rng.uniform(0.1, 0.9), rng.uniform(0.9, 2.3)
    pool = [make_arcs(rng, curved) for _ in range(POOL)]
    return [make_character(rng, pool, strokes) for _ in range(CHARACTERS)]


def make_arcs(rng: np.random.Generator, curved: float) -> Floats:
    """The arcs of a stroke, of which the share ``curved`` is not straight."""
    num = rng.choice([1, 2, 3, 4], p=[0.35, 0.35, 0.2, 0.1])
    bends = np.pi * rng.choice([0.25, 0.5, 0.75, 1.0, 1.75], num, p=[0.15, 0.25, 0.15, 0.35, 0.1])
    bends *= rng.choice([-1, 1], num) * (rng.random(num) < curved)
    lengths = rng.choice([0.3, 0.5, 0.8, 1.1], num) * (1 + 0.15 * np.abs(bends))
    corners = np.pi * rng.choice([0.25, 0.5, 0.75], num, p=[0.25, 0.5, 0.25])
    corners *= rng.choice([-1, 1], num)
    straight_on = np.r_[False, bends[1:] != bends[:-1]] & (rng.random(num) < 0.6)
    corners[straight_on] = 0.0
    corners[0] = np.pi / 4 * rng.choice(8, p=[0.3, 0.05, 0.3, 0.05, 0.1, 0.05, 0.1, 0.05])
    return np.stack([lengths, bends, corners], axis=-1)


def make_character(rng: np.random.Generator, pool: list[Floats], strokes: float) -> Character:
    """Strokes of the pool, each at, on or beside those before it."""
    made: Character = []
    num = 1 + min(int(rng.poisson(strokes)), 4)
    dots = 0
    while len(made) < num or dots < 3 * DOTS:
        arcs = pool[rng.integers(len(pool))].copy()
        if rng.random() < 0.3:
            arcs[0, 2] += np.pi / 2 * rng.integers(1, 4)
        own, on, at, beside = DOTS * len(arcs), 0, 0, np.zeros(2)
        if made:
            on = int(rng.choice([0, dots - 1, int(rng.integers(dots))]))
            at = int(rng.choice([0, own // 2, own - 1], p=[0.5, 0.35, 0.15]))
            beside = rng.choice([-0.5, 0, 0.5], 2) * (rng.random() < 0.25)
        made.append(Stroke(arcs, on, at, beside))
        dots += own
    extent = np.ptp(trace(made), axis=0).max()
    complexity = dots / DOTS  # is written larger, to be read
    scale = np.clip(rng.normal(0.54 + 0.018 * complexity, 0.1), 0.35, 0.85) / extent
    return [
        stroke._replace(arcs=stroke.arcs * [scale, 1, 1], beside=stroke.beside * scale)
        for stroke in made
    ]


def trace(character: Character) -> Floats:
    """The dots of a pen that draws a character, (..., dots, 2): every arc has as many."""
    drawn = np.zeros((*character[0].arcs.shape[:-2], 1, 2))
    for arcs, on, at, beside in character:
        length, bend, corner = np.moveaxis(arcs, -1, 0)
        before = np.cumsum(corner, axis=-1) + np.cumsum(bend, axis=-1) - bend
        heading = before[..., None] + bend[..., None] * (np.arange(DOTS) + 0.5) / DOTS
        steps = np.stack([np.cos(heading), np.sin(heading)], axis=-1) * (
            length[..., None, None] / DOTS
        )
        way = np.cumsum(steps.reshape(*arcs.shape[:-2], -1, 2), axis=-2)
        way += (drawn[..., on, :] + beside - way[..., at, :])[..., None, :]
        drawn = np.concatenate([drawn, way], axis=-2) if drawn.shape[-2] > 1 else way
    return drawn


# ---- hands


class Hands(NamedTuple):
    """What the drawings of each of some people share.

    Attributes:
        shear: (hands, 2, 2), size, slant, and how wide for its height.
        untidy: (hands,), the size of what differs from drawing to drawing.
        pen: (hands,), how wide its line is, in pixels of the drawing.
    """

    shear: Floats
    untidy: Floats
    pen: npt.NDArray[np.int64]


def make_hands(rng: np.random.Generator) -> Hands:
    """Those that draw an alphabet."""
    sides = np.exp(rng.normal(0, 0.1, (HANDS, 1)) + rng.normal(0, 0.06, (HANDS, 2)))
    shear = sides[:, None] * np.eye(2)
    shear[:, 1, 0] = rng.normal(0, 0.12, HANDS)
    untidy = rng.uniform(0.5, 1.5, HANDS)
    return Hands(shear, untidy, rng.choice(PENS, HANDS, p=[0.05, 0.4, 0.45, 0.1]))


def render(character: Character, hands: Hands, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Each hand's drawing of a character, uint8 (hands, 28, 28), ink 255 on 0."""
    num = len(hands.untidy)

    def differing(size: float | Floats, *shape: int) -> Floats:
        untidy = hands.untidy.reshape(num, *[1] * len(shape))
        return untidy * rng.normal(0, size, (num, *shape))

    meant = []
    for stroke in character:
        arcs = stroke.arcs + differing(np.array([0, 0.09, 0.08]), *stroke.arcs.shape)
        arcs[..., :2] *= np.exp(differing(0.08, len(stroke.arcs), 2))
        beside = stroke.beside + differing(0.02, 2)
        meant.append(stroke._replace(arcs=arcs, beside=beside))
    dots = trace(meant)
    turn = differing(0.05)
    turned = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    dots = dots @ np.moveaxis(turned, -1, 0) @ hands.shear
    low, high = dots.min(axis=1, keepdims=True), dots.max(axis=1, keepdims=True)
    dots -= (low + high) / 2
    dots *= np.minimum(1.0, 0.9 / (high - low).max(axis=-1, keepdims=True))
    room = 0.46 - np.abs(dots).max(axis=1, keepdims=True)
    dots += np.clip(rng.normal(0, 0.045, (num, 1, 2)), -room, room)
    return to_images(dots, hands.pen)


def to_images(dots: Floats, pens: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """What square pens leave at dots, (hands, dots, 2) from -0.5 to 0.5, resized as Omniglot is."""
    side = DRAWN_SIZE[0]
    nibs = np.minimum(np.arange(max(PENS)), pens[:, None] - 1) - pens[:, None] // 2
    across = (side * nibs[:, :, None] + nibs[:, None]).reshape(len(pens), 1, -1)
    x, y = np.moveaxis(np.rint(side * (dots + 0.5)).astype(np.int64), -1, 0)
    papers = np.zeros((len(dots), *DRAWN_SIZE), np.uint8)
    sheets = side * side * np.arange(len(dots))[:, None]
    papers.reshape(-1)[(sheets + side * y + x)[..., None] + across] = 255
    return np.stack(
        [np.asarray(Image.fromarray(paper).resize(SIZE, FILTERS["antialias"])) for paper in papers]
    )
