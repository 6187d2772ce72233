"""mamlnp: model-agnostic meta-learning from scratch, on a reverse-mode autodiff of any order.

To read the code, follow the order in which each module imports only from those above it:

``errors``, ``backend`` (the seam to NumPy and numba), ``array`` (a value and how it was made),
``draws`` and ``op`` (what an operation declares), ``ops`` (the operations), ``numpy_names`` (how
NumPy's functions take Arrays), ``tree``, ``autodiff`` (vjp, grad, hvp), ``compile`` (trace once,
replay fast), ``vmap`` (a function of one example, for all of them), ``losses``, ``optim``, ``nn``,
``tasks``, ``meta`` (MAML and the algorithms beside it), ``ranks`` and ``parallel`` (a meta-batch
over processes and threads), ``gradcheck``, ``checks``, ``runs``, ``plots``, ``learner`` (theta,
ready to adapt),
``rl`` (Algorithm 3, and its environments), ``conformance`` and ``diagnosis`` (is another
implementation right?), ``graph`` and ``landscape`` (pictures of tapes and of losses),
``experiments``, ``initialisations`` (load), ``figures``, ``cli``.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any as _Any

from . import (
    errors,
    losses,
    meta,
    nn,
    numpy_names as _numpy_names,  # noqa: F401 (answers NumPy's calls)
    ops as _ops,  # noqa: F401 (registers the operations)
    optim,
    parallel,
    tasks,
    tree,
)
from .array import Array, array
from .autodiff import (
    checkpoint,
    custom_vjp,
    dot,
    grad,
    hessian,
    hvp,
    jacobian,
    jvp,
    stop_gradient,
    value_and_grad,
    vjp,
)
from .backend import to_device, to_host, using_device, using_kernels
from .compile import compile as compile, debug_compile
from .gradcheck import check_grads, check_hvp, check_meta_gradient, debug_tasks
from .meta import maml
from .op import debug_nans
from .ops.elementwise import (
    abs as abs,
    add,
    astype,
    clip,
    cos,
    div,
    equal,
    erf,
    erfc,
    exp,
    expm1,
    greater,
    greater_equal,
    isfinite,
    less,
    less_equal,
    log,
    log1p,
    maximum,
    minimum,
    mul,
    neg,
    not_equal,
    one_hot,
    ones_like,
    power,
    relu,
    sigmoid,
    sign,
    sin,
    softplus,
    sqrt,
    square,
    sub,
    tanh,
    where,
    zeros_like,
)
from .ops.gather import getitem, put, take, take_along_axis
from .ops.linear import conv2d, einsum, fold, matmul, patches
from .ops.pool import avg_pool2d, max_pool2d
from .ops.reduce import (
    argmax,
    argmin,
    log_softmax,
    logsumexp,
    max as max,
    mean,
    min as min,
    norm,
    softmax,
    sum as sum,
    var,
)
from .ops.shape import (
    broadcast_to,
    concatenate,
    expand_dims,
    flip,
    moveaxis,
    pad,
    ravel,
    reshape,
    squeeze,
    stack,
    sum_to,
    swapaxes,
    transpose,
)
from .tasks import (
    Batch,
    Task,
    fewshot,  # noqa: F401 (reached by ml.tasks)
    folder,  # noqa: F401
    miniimagenet,  # noqa: F401
    omniglot,  # noqa: F401
    sinusoid,  # noqa: F401
    strokes,  # noqa: F401
)
from .vmap import vmap as vmap

if TYPE_CHECKING:
    from . import initialisations, rl
    from .initialisations import load

    __version__: str

__all__ = [
    "Array",
    "Batch",
    "Task",
    "add",
    "argmax",
    "argmin",
    "array",
    "astype",
    "avg_pool2d",
    "broadcast_to",
    "check_grads",
    "check_hvp",
    "check_meta_gradient",
    "checkpoint",
    "clip",
    "compile",
    "concatenate",
    "conv2d",
    "cos",
    "custom_vjp",
    "div",
    "debug_compile",
    "debug_nans",
    "debug_tasks",
    "dot",
    "einsum",
    "equal",
    "erf",
    "erfc",
    "errors",
    "exp",
    "expand_dims",
    "expm1",
    "flip",
    "fold",
    "getitem",
    "grad",
    "greater",
    "greater_equal",
    "hessian",
    "hvp",
    "initialisations",
    "isfinite",
    "jacobian",
    "jvp",
    "less",
    "less_equal",
    "load",
    "log",
    "log1p",
    "log_softmax",
    "logsumexp",
    "losses",
    "maml",
    "matmul",
    "max_pool2d",
    "maximum",
    "mean",
    "meta",
    "minimum",
    "moveaxis",
    "mul",
    "neg",
    "nn",
    "norm",
    "not_equal",
    "one_hot",
    "ones_like",
    "optim",
    "pad",
    "parallel",
    "patches",
    "power",
    "put",
    "ravel",
    "relu",
    "reshape",
    "rl",
    "sigmoid",
    "sign",
    "sin",
    "softmax",
    "softplus",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "stop_gradient",
    "sub",
    "sum_to",
    "swapaxes",
    "take",
    "take_along_axis",
    "tanh",
    "tasks",
    "to_device",
    "to_host",
    "using_device",
    "transpose",
    "tree",
    "using_kernels",
    "value_and_grad",
    "var",
    "vjp",
    "vmap",
    "where",
    "zeros_like",
]


def __getattr__(name: str) -> _Any:
    """``load`` and ``initialisations`` bring the experiments and matplotlib with them, which takes
    longer to import than all else: when they are asked for."""
    if name in ("load", "initialisations"):
        module = _import_module(".initialisations", __name__)
        return module.load if name == "load" else module
    if name == "rl":
        return _import_module(".rl", __name__)
    if name == "__version__":
        return _import_module(".runs", __name__).version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "load", "initialisations", "rl", "__version__"})
