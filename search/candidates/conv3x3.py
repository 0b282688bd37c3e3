"""3×3 convolution: each token with its eight neighbours."""

from spvit_deploy.lean.operations import convolution
from spvit_deploy.search.candidates.convolution import convolution_candidate

CONV3X3 = convolution_candidate(convolution.CONV3X3)
