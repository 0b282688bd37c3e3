"""Skip: the attention branch returns its input."""

from spvit_deploy.lean.operations.base import SkipOperation
from spvit_deploy.search.candidates.base import Candidate

SKIP = Candidate(SkipOperation(), forward=lambda attention, x, args, kwargs: x)
