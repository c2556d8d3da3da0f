import torch


def _check(x, weight, bias, seq_idx, initial_states):
    batch, dim, time = x.shape
    assert x.stride(1) == 1 and x.stride(2) > 1, "channels last"
    assert dim % 8 == 0 and x.stride(2) % 8 == 0 and x.stride(0) % 8 == 0
    assert weight.shape == (dim, weight.shape[1]) and 2 <= weight.shape[1] <= 4
    assert bias is None or (bias.shape == (dim,) and bias.dtype == weight.dtype)
    if seq_idx is not None:
        assert seq_idx.dtype == torch.int32 and seq_idx.is_contiguous() and seq_idx.shape == (batch, time)
    if initial_states is not None:
        assert initial_states.shape == (batch, dim, weight.shape[1] - 1) and initial_states.stride(1) == 1


def _convolved(x, weight, bias, seq_idx, initial_states, silu):
    """(y, final states) in float32; differentiable."""
    taps = weight.shape[1]
    before = x.new_zeros(x.shape[0], x.shape[1], taps - 1) if initial_states is None else initial_states
    inputs = torch.cat([before, x], dim=2)
    y = x.new_zeros(()) if bias is None else bias[:, None]
    for k in range(taps):
        term = weight[:, taps - 1 - k, None] * inputs[..., taps - 1 - k : inputs.shape[2] - k]
        if seq_idx is not None and k:
            earlier = torch.nn.functional.pad(seq_idx, (k, 0), value=-1)[:, : seq_idx.shape[1]]
            term = torch.where((earlier == seq_idx)[:, None], term, 0.0)
        y = y + term
    return torch.nn.functional.silu(y) if silu else y, inputs[..., inputs.shape[2] - taps + 1 :]


def _channels_last(values):
    return values.transpose(1, 2).contiguous().transpose(1, 2)


class CausalConv1dFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, seq_idx, initial_states, return_final_states, final_states_out, activation):
        assert activation in (None, "silu", "swish") and final_states_out is None
        assert seq_idx is None or (initial_states is None and not return_final_states)
        _check(x, weight, bias, seq_idx, initial_states)
        before = None if initial_states is None else initial_states.float()
        constant = None if bias is None else bias.float()
        y, last = _convolved(x.float(), weight.float(), constant, seq_idx, before, activation is not None)
        y = _channels_last(y.to(x.dtype))
        return (y, _channels_last(last.to(x.dtype))) if return_final_states else y

    @staticmethod
    def backward(ctx, dout, *args):
        x, weight, bias, seq_idx, initial_states = ctx.saved_tensors
        assert dout.stride(1) == 1
        _check(x, weight, bias, seq_idx, initial_states)
        leaves = [t.float().requires_grad_() for t in (x, weight, bias) if t is not None]
        before = None if initial_states is None else initial_states.float().requires_grad_()
        with torch.enable_grad():
            constant = None if bias is None else leaves[2]
            y, last = _convolved(*leaves[:2], constant, seq_idx, before, ctx.activation)
        wanted = [*leaves, *([before] if ctx.return_dinitial_states else [])]
        targets = [(y, dout), *([(last, args[0])] if ctx.return_final_states and args[0] is not None else [])]
        found = torch.autograd.grad([t for t, _ in targets], wanted, [g.float() for _, g in targets])
        dx, dweight, *rest = (grad.to(x.dtype) for grad in found)
        dbias, *dstate = rest if bias is not None else (None, *rest)
        dinitial = _channels_last(dstate[0]) if dstate else None
        return _channels_last(dx), dweight, dbias, None, dinitial, None, None, None


def causal_conv1d_fn(
    x,
    weight,
    bias=None,
    seq_idx=None,
    initial_states=None,
    return_final_states=False,
    final_states_out=None,
    activation=None,
):
    return CausalConv1dFn.apply(
        x, weight, bias, seq_idx, initial_states, return_final_states, final_states_out, activation
    )
