"""Tuned kernels for Griffin and Hawk language models.

``linear_scan`` and its relatives run the fastest correct kernel known for the hardware at hand; ``select`` and
``explain`` tell which one that is and why, ``use`` overrides the choice, and ``griffin tune`` measures it.
"""

from griffin_kernels.dispatch import explain as explain
from griffin_kernels.dispatch import refresh as refresh
from griffin_kernels.dispatch import select as select
from griffin_kernels.dispatch import use as use
from griffin_kernels.functional.linear_scan import linear_scan as linear_scan
from griffin_kernels.functional.local_attention import local_attention as local_attention
from griffin_kernels.functional.rg_lru import RGLRUWeights as RGLRUWeights
from griffin_kernels.functional.rg_lru import rg_lru as rg_lru

__version__ = "0.1.0"
