"""What ml.debug_compile() adds to the first call of a compiled function, whose kernels are on the
disk: the checks of the passes, and the plan's, in seconds and as shares of the rest.

    python benchmarks/debug_compile.py
"""

import time
from typing import Any
from unittest import mock

import mamlnp as ml
from mamlnp import checks
from mamlnp.compile import verify


def first_call(f: Any, args: Any) -> dict[str, float]:
    """Seconds of everything, of the checks of passes and of the plan's check."""
    seconds = {"passes": 0.0, "plan": 0.0}

    def timed(name: str, function: Any) -> Any:
        def run(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                seconds[name] += time.perf_counter() - start

        return run

    with (
        mock.patch.object(verify.Passes, "__call__", timed("passes", verify.Passes.__call__)),
        mock.patch.object(verify, "check_plan", timed("plan", verify.check_plan)),
        ml.debug_compile(),
    ):
        start = time.perf_counter()
        ml.compile(f)(*args)
    return {"all": time.perf_counter() - start, **seconds}


def main() -> None:
    for name in ("MAML, mlp, 1 step", "MAML, mlp, 3 steps", "MAML, conv4, 1 step"):
        make, params, task = checks._algorithms()[name]
        gradient = make().gradient
        first_call(gradient, (params, task))  # compiles the kernels
        found = first_call(gradient, (params, task))
        rest = found["all"] - found["passes"] - found["plan"]
        parts = (f"{k} {found[k]:.3f} s ({found[k] / rest:.0%})" for k in ("passes", "plan"))
        print(f"{name}: without checks {rest:.3f} s; {', '.join(parts)}")


if __name__ == "__main__":
    main()
