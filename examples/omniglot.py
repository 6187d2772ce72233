"""MAML on handwritten characters, top to bottom (Finn et al. 2017, section 5.2).

    python examples/omniglot.py [META-ITERATIONS [FOLDER]]

Five characters that were never seen before, one image of each: which of them is a new image? FOLDER
holds the two zips of Omniglot; without it they are downloaded.
"""

import sys
from pathlib import Path

import numpy as np

import mamlnp as ml

EPISODE = {"num_ways": 5, "num_shots": 1, "num_queries": 1}
FILTERS, TEST_BATCHES = 64, 20


def main(meta_iterations: int = 2_000, folder: str | None = None) -> float:
    """Meta-train, and return the accuracy on characters of the test alphabets."""
    characters = ml.tasks.omniglot.load_omniglot(folder and Path(folder))
    network = ml.nn.conv4(5, filters=FILTERS, gamma=True, head=ml.nn.normal(0.1))

    def loss(params, batch):
        return ml.losses.cross_entropy(network.apply(params, batch.x), batch.y, reduction="mean")

    algorithm = ml.meta.MAML(loss, inner_lr=2.0, inner_steps=1)
    optimizer = ml.optim.adam(ml.optim.cosine(3e-3, meta_iterations))
    step = ml.parallel.meta_step(algorithm.gradient, optimizer=optimizer)

    params = network.init(rng=np.random.default_rng(0))
    state = optimizer.init(params)
    for n in range(1, meta_iterations + 1):
        task = characters["train"].sample(32, **EPISODE, rng=np.random.default_rng([1, n]))
        params, state, losses = step(params, state, task)
        if n % 100 == 0 or n == meta_iterations:
            print(f"meta-iteration {n}: query loss {losses.mean().item():.3f}", flush=True)

    # In testing the inner loop takes three steps.
    adapt = ml.meta.MAML(loss, inner_lr=2.0, inner_steps=3).adapt
    found = []
    for n in range(TEST_BATCHES):
        task = characters["test"].sample(30, **EPISODE, rng=np.random.default_rng([2, n]))
        logits = network.apply(adapt(params, task.support), task.query.x)
        found.append(ml.losses.accuracy(logits, task.query.y).numpy())
    accuracy = float(np.mean(found))
    print(f"test characters, 5-way 1-shot: {100 * accuracy:.1f} %")
    return accuracy


if __name__ == "__main__":
    iterations, *rest = sys.argv[1:] or ["2000"]
    main(int(iterations), *rest)
