"""A recurrent layer of one's own around the RG-LRU, trained, packed with documents, and decoded token by token.

The task: some inputs are marked; at each step, say which value the last marked one had. A layer has to keep a number
for as long as nothing is marked, and to forget it at once when something is.

    python examples/own_layer.py           half a minute on a CPU
    python examples/own_layer.py --quick   seconds
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import griffin_kernels
from griffin_kernels import training
from griffin_kernels.nn import RGLRU, RMSNorm


class Memory(nn.Module):
    """x + out(rg_lru(in(norm(x)))): a layer for any network. x: [B, T, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.rg_lru = RMSNorm(width), RGLRU(width, heads)
        self.inside, self.outside = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, h0: Tensor | None = None, segment_pos: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The result, and the state after the last step, float32 [B, width], to go on from."""
        y, h_last = self.rg_lru(self.inside(self.norm(x)), h0=h0, segment_pos=segment_pos)
        return x + self.outside(y), h_last

    def step(self, x: Tensor, h: Tensor, positions: Tensor) -> Tensor:
        """One token, x [B, width], at positions [B] in its document; the state h is changed in place."""
        return x + self.outside(self.rg_lru.step(self.inside(self.norm(x)), h, positions=positions))


class Network(nn.Module):
    """Two such layers between linear ones: [B, T, 2] -> [B, T]."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 1)
        self.layers = nn.ModuleList(Memory(width, heads=4) for _ in range(2))

    def forward(self, x: Tensor, segment_pos: Tensor | None = None) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x, _ = layer(x, segment_pos=segment_pos)
        return self.last(x)[..., 0]


def task(batch: int, time: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Values and marks [B, T, 2], targets [B, T], and positions [B, T] in documents of half a row each."""
    values = torch.rand(batch, time, generator=generator) * 2 - 1
    positions = torch.arange(time).expand(batch, time) % (time // 2)
    marks = (torch.rand(batch, time, generator=generator) < 0.15) | (positions == 0)
    last = torch.where(marks, torch.arange(time), 0).cummax(1).values
    return torch.stack([values, marks.float()], -1), values.gather(1, last), positions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds, and a larger error")
    steps, wanted = (60, 0.15) if parser.parse_args().quick else (600, 0.02)

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = Network()
    optimizer = torch.optim.AdamW(training.parameter_groups(network, weight_decay=0.01), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        x, targets, positions = task(16, 64, generator)
        loss = (network(x, positions) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % (steps // 5) == 0:
            print(f"step {step:4}: mean square error {loss.item():.3f} (1/3 knows nothing)")

    with torch.no_grad():
        x, targets, positions = task(64, 64, generator)
        answers = network(x, positions)
        error = (answers - targets).square().mean().item()
        print(f"after {steps} steps: {error:.3f}")
        assert error < wanted, f"expected less than {wanted}"

        # documents of a row are as rows of their own
        halves = network(x.unflatten(1, (2, 32)).flatten(0, 1))
        torch.testing.assert_close(halves.view(64, 64), answers)

        # one token at a time, with states of one's own
        states = [torch.full((64, 48), torch.nan) for _ in network.layers]  # position 0 does not read them
        for at in range(32):
            token = network.first(x[:, at])
            for layer, h in zip(network.layers, states, strict=True):
                token = layer.step(token, h, positions[:, at])
            torch.testing.assert_close(network.last(token)[:, 0], answers[:, at])
        print("packed documents and single steps give the same")

    inputs = {"x": torch.randn(16, 64, 48), **network.layers[0].rg_lru.weights._asdict()}
    print(griffin_kernels.explain("rg_lru", inputs))


if __name__ == "__main__":
    main()
