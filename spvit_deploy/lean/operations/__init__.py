"""Operations that attention can become: their lean forms and their cost."""

from spvit_deploy.lean.operations.base import EXTRAS_PREFIX, Operation
from spvit_deploy.lean.operations.registry import OperationSet, load_operations

__all__ = ["EXTRAS_PREFIX", "Operation", "OperationSet", "load_operations"]
