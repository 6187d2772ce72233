"""Every differentiable operation, each from one declaration; reading order as imported here."""

from . import shape, elementwise, reduce, gather, linear, pool  # noqa: I001 (the reading order)
from ..op import registry

for _op in registry.values():
    _op.check()
