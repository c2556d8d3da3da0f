"""gelu's tanh form, y (1 + tanh(SCALE (y + CUBIC y^3))) / 2; kernels write it y sigmoid(2 SCALE (y + CUBIC y^3))."""

SCALE = 0.7978845608028654
"""sqrt(2 / pi)."""

CUBIC = 0.044715
