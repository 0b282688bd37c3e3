"""What a search chooses from: one module per candidate operation.

Each ties its supernet form to its lean form and cost, which are in ``lean/operations``.
"""

from spvit_deploy.search.candidates.base import Candidate, Variant
from spvit_deploy.search.candidates.registry import (
    Candidates,
    find_candidates,
    needed_by,
    offered_in,
)

__all__ = [
    "Candidate", "Candidates", "Variant", "find_candidates", "needed_by", "offered_in",
]  # fmt: skip
