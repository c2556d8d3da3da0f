import torch

from fla.ops.hgrn import _hgrn


class FusedRecurrentHGRNFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, g, initial_state=None, output_final_state=False, cu_seqlens=None):
        o, last = _hgrn.forward(x, g)
        return o, last if output_final_state else None

    @staticmethod
    def backward(ctx, do, dht=None):
        g, o, initial_state = ctx.saved_tensors
        assert initial_state is None and ctx.cu_seqlens is None
        return *_hgrn.backward(g, o, do), None, None, None


def fused_recurrent_hgrn(x, g, initial_state=None, output_final_state=False, cu_seqlens=None):
    return FusedRecurrentHGRNFunction.apply(x, g, initial_state, output_final_state, cu_seqlens)
