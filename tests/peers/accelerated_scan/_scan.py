import torch


class Scan(torch.autograd.Function):
    """h_t = gates_t h_{t-1} + tokens_t over the last dim of [B, C, T]."""

    @staticmethod
    def forward(ctx, gates, tokens):
        assert tokens.shape == gates.shape and gates.is_contiguous() and tokens.is_contiguous()
        states = torch.empty_like(tokens)
        carry = torch.zeros_like(tokens[..., 0], dtype=torch.float32)
        for t in range(tokens.shape[2]):
            carry = gates[..., t].float() * carry + tokens[..., t].float()
            states[..., t] = carry
        return states


def gradients(gates, states, grad):
    """(gradient of gates, of tokens)."""
    assert gates.is_contiguous() and states.is_contiguous()
    d_gates, d_tokens = torch.empty_like(gates), torch.empty_like(gates)
    carry = torch.zeros_like(grad[..., 0], dtype=torch.float32)
    for t in reversed(range(grad.shape[2])):
        carry = carry + grad[..., t].float()
        d_tokens[..., t] = carry
        d_gates[..., t] = carry * (states[..., t - 1].float() if t else 0.0)
        carry = carry * gates[..., t].float()
    return d_gates, d_tokens
