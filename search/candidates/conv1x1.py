"""1×1 convolution: the centre of the kernel only."""

from __future__ import annotations

from spvit_deploy.lean.operations.convolution import Conv1x1
from spvit_deploy.search.candidates.convolution import ConvolutionCandidate


class Conv1x1Candidate(ConvolutionCandidate):
    """Each token on its own."""

    operation = Conv1x1()
