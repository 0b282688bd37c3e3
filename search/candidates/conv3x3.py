"""3×3 convolution: over the neighbours of each token."""

from __future__ import annotations

from spvit_deploy.lean.operations.convolution import Conv3x3
from spvit_deploy.search.candidates.convolution import ConvolutionCandidate


class Conv3x3Candidate(ConvolutionCandidate):
    """Each token with its eight neighbours."""

    operation = Conv3x3()
