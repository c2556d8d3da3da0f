"""torch.export of a whole model with lengths that vary, saved, loaded, and run: the kernels are in the graph as ops.

python examples/export_model.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from griffin_kernels.models import Griffin, preset


class Logits(nn.Module):
    """tokens [B, T] -> logits [B, T, V], without a cache: a graph of tensors alone."""

    def __init__(self, model: Griffin) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits, _ = self.model(tokens, return_cache=False)
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="griffin-tiny")
    parser.add_argument("--quick", action="store_true", help="as it is: the model is tiny")
    options = parser.parse_args()

    torch.manual_seed(0)
    module = Logits(Griffin(preset(options.model))).eval().requires_grad_(False)
    tokens = torch.randint(256, (2, 24))
    shapes = {"tokens": {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("time", min=2, max=4096)}}
    program = torch.export.export(module, (tokens,), dynamic_shapes=shapes)
    ours = sorted({str(node.target) for node in program.graph.nodes if "griffin_kernels" in str(node.target)})
    print(f"exported: {len(program.graph.nodes)} nodes, of which these are kernels: {', '.join(ours)}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(program, path)
        loaded = torch.export.load(path).module()
        print(f"saved and loaded: {path.stat().st_size / 1e6:.1f} MB")
    for sizes in ((2, 24), (1, 7), (3, 130)):
        tokens = torch.randint(256, sizes)
        difference = float((loaded(tokens) - module(tokens)).abs().max())
        print(f"tokens {list(sizes)}: logits differ by {difference:.1e} at most")
        if difference > 1e-5:
            raise SystemExit("the exported graph is not the model")


if __name__ == "__main__":
    main()
