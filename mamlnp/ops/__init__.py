"""Every differentiable operation, each from one declaration.

In reading order: shape, elementwise, gather, reduce, linear, pool.
"""

from ..op import registry
from . import elementwise, gather, linear, pool, reduce, shape

for _op in registry.values():
    _op.check()

__all__ = ["elementwise", "gather", "linear", "pool", "reduce", "shape"]
