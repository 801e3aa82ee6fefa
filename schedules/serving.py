"""What both families of kernels for MLC's engine (``cpu/serving.py``, ``gpu/serving.py``) agree on."""

MASKED = -3.4028234663852886e38  # the lowest float32: the logit of a token that is ruled out
COLD = 1e-5  # a temperature at or below it: only the most likely tokens
WORD_BITS = 32  # of a mask: a bit per token
