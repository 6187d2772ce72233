"""Every differentiable operation, each from one declaration.

In reading order: shape, elementwise, gather, reduce, linear, linalg, pool.
"""

from ..op import registry
from . import elementwise, gather, linalg, linear, pool, reduce, shape

for _op in registry.values():
    _op.check()

__all__ = ["elementwise", "gather", "linalg", "linear", "pool", "reduce", "shape"]
