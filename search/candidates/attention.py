"""Full attention, as in the dense model."""

from spvit_deploy.lean.operations.attention import FullAttention
from spvit_deploy.search.candidates.base import Candidate

ATTENTION = Candidate(
    FullAttention(),
    forward=lambda attention, x, args, kwargs: attention.attend(None, x, *args, **kwargs),
)
