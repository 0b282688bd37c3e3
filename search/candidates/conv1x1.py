"""1×1 convolution: the centre of the kernel, each token on its own."""

from spvit_deploy.lean.operations import convolution
from spvit_deploy.search.candidates.convolution import convolution_candidate

CONV1X1 = convolution_candidate(convolution.CONV1X1)
