"""What griffin_kernels.integrations.vllm_model takes from vLLM 0.33, for machines that cannot have vLLM.

Each part follows the interface of the module it stands for, and computes what it does on one CPU, in plain PyTorch.
``PARALLEL`` says which GPU of how many this would be; nothing is sent, so that a row-parallel layer gives its own
summand. Attention keeps keys by request: its metadata are ``Requests``.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

PARALLEL = SimpleNamespace(ranks=1, rank=0, first=True, last=True)
CURRENT = SimpleNamespace(config=None, context=None)
REGISTERED: dict[str, str] = {}
LIBRARY = torch.library.Library("vllm", "FRAGMENT")
LAYOUT = SimpleNamespace(dim_first=False)


@dataclass
class Requests:
    """Attention's metadata: request -> (first token, end) in the batch, and how many tokens it had before."""

    spans: dict[str, tuple[int, int]]
    past: dict[str, int]


def set_weight_attrs(weight, attributes):
    for name, value in attributes.items():
        setattr(weight, name, value)


def parameter(*shape, loader=None):
    made = nn.Parameter(torch.full(shape, torch.nan), requires_grad=False)
    if loader is not None:
        made.weight_loader = loader
    return made


def default_weight_loader(param, loaded):
    assert param.shape == loaded.shape, f"{list(loaded.shape)} for {list(param.shape)}"
    param.data.copy_(loaded)


def sharded_weight_loader(axis):
    def loader(param, loaded):
        size = param.shape[axis]
        default_weight_loader(param, loaded.narrow(axis, PARALLEL.rank * size, size))

    return loader


class MergedColumnParallelLinear(nn.Module):
    """Several layers in one product; each GPU has a piece of the rows of every one."""

    def __init__(self, input_size, output_sizes, bias=True, quant_config=None, prefix=""):
        super().__init__()
        self.rows = [size // PARALLEL.ranks for size in output_sizes]
        self.shards = [(PARALLEL.rank, PARALLEL.ranks)] * len(output_sizes)
        self.weight = parameter(sum(self.rows), input_size, loader=self.load)
        self.bias = parameter(sum(self.rows), loader=self.load) if bias else None

    def load(self, param, loaded):
        which = loaded.shard_id
        which = "qkv".index(which) if isinstance(which, str) else which
        rank, ranks = self.shards[which]
        assert loaded.shape[0] == self.rows[which] * ranks
        piece = loaded[rank * self.rows[which] :][: self.rows[which]]
        begin = sum(self.rows[:which])
        default_weight_loader(param[begin : begin + self.rows[which]], piece)

    def forward(self, x):
        return functional.linear(x, self.weight, self.bias), None


class QKVParallelLinear(MergedColumnParallelLinear):
    """Keys and values of a head are on several GPUs where there are more of those than of heads."""

    def __init__(self, hidden_size, head_size, heads, kv_heads, bias=True, quant_config=None, prefix=""):
        copies = max(1, PARALLEL.ranks // kv_heads)
        sizes = [heads, kv_heads * copies, kv_heads * copies]
        super().__init__(hidden_size, [size * head_size for size in sizes], bias=bias)
        shared = (PARALLEL.rank // copies, PARALLEL.ranks // copies)
        self.shards = [(PARALLEL.rank, PARALLEL.ranks), shared, shared]


class RowParallelLinear(nn.Module):
    """This GPU's summand; the bias is the first one's."""

    def __init__(self, input_size, output_size, bias=True, quant_config=None, prefix=""):
        super().__init__()
        width = input_size // PARALLEL.ranks
        self.weight = parameter(output_size, width, loader=sharded_weight_loader(1))
        self.bias = parameter(output_size) if bias else None

    def forward(self, x):
        return functional.linear(x, self.weight, self.bias if PARALLEL.rank == 0 else None), None


class GemmaRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight, self.eps = parameter(hidden_size), eps

    def forward(self, x, residual=None):
        total = x if residual is None else x + residual
        normed = functional.rms_norm(total.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)
        return normed if residual is None else (normed, total)


class GeluAndMul(nn.Module):
    def __init__(self, approximate="none"):
        super().__init__()
        self.approximate = approximate

    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        return functional.gelu(gate, approximate=self.approximate) * up


class Rotary(nn.Module):
    def __init__(self, head_size, rotary, base):
        super().__init__()
        self.head_size, self.rotary, self.base = head_size, rotary, base

    def turn(self, positions, x):
        heads = x.unflatten(-1, (-1, self.head_size))
        angles = positions[:, None] / self.base ** (torch.arange(0, self.rotary, 2) / self.rotary)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        first, second = heads[..., : self.rotary].chunk(2, dim=-1)
        turned = [first * cos - second * sin, second * cos + first * sin, heads[..., self.rotary :]]
        return torch.cat(turned, dim=-1).flatten(-2)

    def forward(self, positions, q, k):
        return self.turn(positions, q), self.turn(positions, k)


def get_rope(head_size, max_position, is_neox_style=True, rope_parameters=None):
    assert is_neox_style and rope_parameters["rope_type"] == "default"
    return Rotary(head_size, int(head_size * rope_parameters["partial_rotary_factor"]), rope_parameters["rope_theta"])


class Attention(nn.Module):
    """A token sees the last ``per_layer_sliding_window`` of its request, itself included (flash_attn.py: (W-1, 0))."""

    def __init__(
        self, num_heads, head_size, scale, num_kv_heads=None, cache_config=None, quant_config=None,
        per_layer_sliding_window=None, prefix="",
    ):  # fmt: skip
        super().__init__()
        self.heads, self.size, self.scale, self.kv_heads = num_heads, head_size, scale, num_kv_heads
        self.window, self.prefix, self.kept = per_layer_sliding_window, prefix, {}
        CURRENT.config.compilation_config.static_forward_context[prefix] = self

    def forward(self, query, key, value):
        requests, out = CURRENT.context.attn_metadata[self.prefix], torch.zeros_like(query)
        for name, (begin, end) in requests.spans.items():
            past = requests.past[name]
            before = self.kept.get(name, (key[:0], value[:0]))
            keys, values = (
                torch.cat([old[:past], new[begin:end]])
                for old, new in zip(before, (key, value), strict=True)
            )  # fmt: skip
            self.kept[name] = keys, values
            q = query[begin:end].unflatten(-1, (self.kv_heads, -1, self.size))
            k, v = (part.unflatten(-1, (self.kv_heads, self.size)) for part in (keys, values))
            age = torch.arange(past, past + end - begin)[:, None] - torch.arange(len(k))
            scores = torch.einsum("qgrd,kgd->grqk", q, k) * self.scale
            scores = scores.masked_fill((age < 0) | (age >= self.window), -math.inf)
            out[begin:end] = torch.einsum("grqk,kgd->qgrd", scores.softmax(-1), v).flatten(1)
        return out


class VocabParallelEmbedding(nn.Module):
    def __init__(self, num_embeddings, embedding_dim, quant_config=None, prefix=""):
        super().__init__()
        self.weight = parameter(num_embeddings, embedding_dim)

    def forward(self, tokens):
        return functional.embedding(tokens, self.weight)


class ParallelLMHead(VocabParallelEmbedding):
    def tie_weights(self, embedding):
        self.weight = embedding.weight
        return self


class LogitsProcessor(nn.Module):
    def __init__(self, vocab_size, soft_cap=None):
        super().__init__()
        self.soft_cap = soft_cap

    def forward(self, head, hidden_states):
        logits = functional.linear(hidden_states, head.weight)
        return logits if self.soft_cap is None else torch.tanh(logits / self.soft_cap) * self.soft_cap


class PPMissingLayer(nn.Identity):
    pass


def make_layers(count, make, prefix):
    half = count // 2
    begin, end = 0 if PARALLEL.first else half, count if PARALLEL.last else half
    layers = [make(prefix=f"{prefix}.{i}") if begin <= i < end else PPMissingLayer() for i in range(count)]
    return begin, end, nn.ModuleList(layers)


class WeightsMapper:
    def __init__(self, orig_to_new_stacked):
        self.stacked = orig_to_new_stacked

    def apply(self, weights):
        for name, loaded in weights:
            for part, (stacked, shard) in self.stacked.items():
                if part in name:
                    name, loaded.shard_id = name.replace(part, stacked, 1), shard
            yield name, loaded


class AutoWeightsLoader:
    """Fills parameters by name, one for each tensor; a name without one is an error unless its layer is elsewhere."""

    def __init__(self, module):
        self.module = module

    def load_weights(self, weights, mapper):
        parameters, loaded = dict(self.module.named_parameters()), set()
        missing = [name for name, part in self.module.named_modules() if isinstance(part, PPMissingLayer)]
        tied = {name for name, _ in self.module.named_parameters(remove_duplicate=False)} - set(parameters)
        for name, tensor in mapper.apply(weights):
            if name in tied or any(name.startswith(f"{part}.") for part in missing):
                continue
            if name not in parameters:
                raise ValueError(f"There is no module or parameter named {name!r}")
            getattr(parameters[name], "weight_loader", default_weight_loader)(parameters[name], tensor)
            loaded.add(name)
        return loaded


class MambaBase:
    """Binds raw pages as vllm/model_executor/layers/mamba/abstract.py does."""

    def bind_kv_cache(self, kv_cache):
        pages, states, begin = kv_cache.squeeze(dim=(1, 2)), [], 0
        for shape, dtype in zip(self.get_state_shape(), self.get_state_dtype(), strict=True):
            size = math.prod(shape) * dtype.itemsize
            states.append(pages[:, begin : begin + size].view(dtype).view(-1, *shape))
            begin += size
        self.kv_cache = tuple(states)


def direct_register_custom_op(op_name, op_func, mutates_args=None):
    if not hasattr(torch.ops.vllm, op_name):  # outlives the modules
        LIBRARY.define(op_name + torch.library.infer_schema(op_func, mutates_args=mutates_args))
        LIBRARY.impl(op_name, lambda *args: DEFINED[op_name](*args), "CPU")
    DEFINED[op_name] = op_func


DEFINED = {}


def get_kv_cache_torch_dtype(cache_dtype, model_dtype):
    return model_dtype if cache_dtype == "auto" else getattr(torch, cache_dtype)


@dataclass
class CompilationConfig:
    splitting_ops: list[str] | None = None
    static_forward_context: dict[str, object] = field(default_factory=dict)


def made_config(hf_config, *, dtype=torch.float32, splitting_ops=None, **cache):
    """A VllmConfig as far as the model looks at it."""
    cache = {"mamba_cache_dtype": "auto", "mamba_ssm_cache_dtype": "auto", **cache}
    return SimpleNamespace(
        model_config=SimpleNamespace(hf_config=hf_config, dtype=dtype, max_model_len=64),
        cache_config=SimpleNamespace(**cache),
        parallel_config=SimpleNamespace(tensor_parallel_size=PARALLEL.ranks),
        quant_config=None,
        compilation_config=CompilationConfig(splitting_ops),
    )


@contextmanager
def forward_context(config, metadata):
    """A forward pass; metadata: layer -> what it is told of the batch, or None while vLLM measures memory."""
    layers = config.compilation_config.static_forward_context
    CURRENT.context = SimpleNamespace(attn_metadata=metadata, no_compile_layers=layers)
    yield
    CURRENT.context = None


class Anything(type):
    """Of classes that are only named in annotations."""


NAMED = {name: Anything(name, (), {}) for name in "CacheConfig ModelConfig VllmConfig QuantizationConfig".split()}
MIXINS = {name: type(name, (), {}) for name in "HasInnerState IsHybrid SupportsLoRA SupportsPP SupportsQuant".split()}
LAYERS = "model_executor.layers"
MODULES = {
    "": {"ModelRegistry": SimpleNamespace(register_model=REGISTERED.__setitem__)},
    "compilation.breakable_cudagraph": {"eager_break_during_capture": lambda function: function},
    "compilation.decorators": {"support_torch_compile": lambda cls: cls},
    "config": {**NAMED, "get_current_vllm_config": lambda: CURRENT.config},
    "distributed": {
        "get_tensor_model_parallel_world_size": lambda: PARALLEL.ranks,
        "get_pp_group": lambda: SimpleNamespace(is_first_rank=PARALLEL.first, is_last_rank=PARALLEL.last),
    },
    "forward_context": {"get_forward_context": lambda: CURRENT.context},
    f"{LAYERS}.activation": {"GeluAndMul": GeluAndMul},
    f"{LAYERS}.attention": {"Attention": Attention},
    f"{LAYERS}.layernorm": {"GemmaRMSNorm": GemmaRMSNorm},
    f"{LAYERS}.linear": {
        "MergedColumnParallelLinear": MergedColumnParallelLinear,
        "QKVParallelLinear": QKVParallelLinear,
        "RowParallelLinear": RowParallelLinear,
    },
    f"{LAYERS}.logits_processor": {"LogitsProcessor": LogitsProcessor},
    f"{LAYERS}.mamba.abstract": {"MambaBase": MambaBase},
    f"{LAYERS}.mamba.mamba_utils": {
        "get_temporal_copy_spec": lambda state, block_ids, cur_block_idx, num_accepted_tokens: None,
        "is_conv_state_dim_first": lambda: LAYOUT.dim_first,
    },
    f"{LAYERS}.quantization": {"QuantizationConfig": NAMED["QuantizationConfig"]},
    f"{LAYERS}.rotary_embedding": {"get_rope": get_rope},
    f"{LAYERS}.vocab_parallel_embedding": {
        "ParallelLMHead": ParallelLMHead,
        "VocabParallelEmbedding": VocabParallelEmbedding,
    },
    "model_executor.model_loader.weight_utils": {"sharded_weight_loader": sharded_weight_loader},
    "model_executor.models.interfaces": MIXINS,
    "model_executor.models.utils": {
        "AutoWeightsLoader": AutoWeightsLoader,
        "PPMissingLayer": PPMissingLayer,
        "WeightsMapper": WeightsMapper,
        "extract_layer_index": lambda name: int(re.findall(r"\d+", name)[0]),
        "make_empty_intermediate_tensors_factory": lambda names, width: None,
        "make_layers": make_layers,
        "maybe_prefix": lambda prefix, name: f"{prefix}.{name}" if prefix else name,
    },
    "model_executor.utils": {"set_weight_attrs": set_weight_attrs},
    "sequence": {"IntermediateTensors": dict},
    "utils.torch_utils": {
        "direct_register_custom_op": direct_register_custom_op,
        "get_kv_cache_torch_dtype": get_kv_cache_torch_dtype,
    },
    "v1.attention.backends.registry": {"MambaAttentionBackendEnum": SimpleNamespace(SHORT_CONV="SHORT_CONV")},
}
OURS = "griffin_kernels.integrations"


@contextmanager
def installed() -> Iterator[ModuleType]:
    """griffin_kernels.integrations.vllm_model, imported with these in place of vLLM; nothing of it stays imported."""
    real = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "vllm"}
    for name in real:
        del sys.modules[name]
    for path, names in MODULES.items():
        parts = ["vllm", *path.split(".")] if path else ["vllm"]
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            if name not in sys.modules:
                sys.modules[name] = ModuleType(name)
                sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(
                    name, None
                )  # for who asks whether it is there
        vars(sys.modules[name]).update(names)
    try:
        yield importlib.import_module(f"{OURS}.vllm_model")
    finally:
        for name in [*sys.modules]:
            if name.split(".")[0] == "vllm" or name in (f"{OURS}.vllm_model", f"{OURS}._vllm_recurrent"):
                del sys.modules[name]
        sys.modules.update(real)
