import torch

from fla.ops.hgrn import _hgrn


class ChunkHGRNFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, g, initial_state=None, output_final_state=False):
        o, _ = _hgrn.forward(x, g)
        return o, o[:, -1].clone() if output_final_state else None

    @staticmethod
    def backward(ctx, do, dht=None):
        g, o, initial_state = ctx.saved_tensors
        assert initial_state is None
        dx, dg = _hgrn.backward(g, o, do)
        return dx.to(o.dtype), dg, None, None


def chunk_hgrn(x, g, initial_state=None, output_final_state=False):
    return ChunkHGRNFunction.apply(x, g, initial_state, output_final_state)
