"""Algorithms that learn to learn, each as pure functions of a meta-batch of tasks.

In reading order: ``algorithm``, ``maml``, ``meta_sgd``.
"""

from .algorithm import Algorithm, Gradient, Loss, num_tasks, per_task, task_losses, through, total
from .maml import MAML
from .meta_sgd import MetaSGD

__all__ = [
    "MAML",
    "Algorithm",
    "Gradient",
    "Loss",
    "MetaSGD",
    "num_tasks",
    "per_task",
    "task_losses",
    "through",
    "total",
]
