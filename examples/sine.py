"""MAML on sine waves, top to bottom (Finn et al. 2017, section 5.1).

    python examples/sine.py [META-ITERATIONS]

A network meets waves of random amplitude and phase, ten points of each. It learns weights from
which a few gradient steps on five points of a new wave fit all of it.
"""

import itertools
import sys

import numpy as np

import mamlnp as ml


def main(meta_iterations: int = 20_000) -> float:
    """Meta-train, and print errors on new waves; returns the mean error after ten steps."""
    network = ml.nn.mlp((1, 40, 40, 1), weights=ml.nn.fan_in)
    waves = ml.tasks.sinusoid.Sinusoids()

    def loss(params, batch):
        return ml.losses.mse(network.apply(params, batch.x), batch.y, reduction="mean")

    # Two inner steps keep theta where more than one step of this size stay stable.
    algorithm = ml.meta.MAML(loss, inner_lr=0.01, inner_steps=2)
    optimizer = ml.optim.adam(1e-3)
    step = ml.parallel.meta_step(algorithm.gradient, optimizer=optimizer, chunks=1)

    params = network.init(rng=np.random.default_rng(0))
    state = optimizer.init(params)
    for n in range(1, meta_iterations + 1):
        task = waves.sample(25, num_shots=10, num_queries=10, rng=np.random.default_rng([1, n]))
        params, state, losses = step(params, state, task)
        if n % 1000 == 0 or n == meta_iterations:
            print(f"meta-iteration {n}: query loss {losses.mean().item():.3f}")

    new = waves.sample(600, num_shots=5, num_queries=100, rng=np.random.default_rng(2))
    path = ml.maml.inner_loop(loss, params, new.support, inner_lr=0.01)
    for steps, theta in enumerate(itertools.islice(path, 11)):
        error = loss(theta, new.query).mean().item()
        if steps in (0, 1, 5, 10):
            print(f"new waves, after {steps} steps: mean squared error {error:.2f}")
    return error


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
