"""Griffin's recurrent block as a layer of vLLM, with its states in vLLM's cache and its heads shared out over GPUs."""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.breakable_cudagraph import eager_break_during_capture
from vllm.config import CacheConfig, ModelConfig, get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
from vllm.model_executor.utils import set_weight_attrs
from vllm.utils.torch_utils import direct_register_custom_op, get_kv_cache_torch_dtype
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from griffin_kernels import errors
from griffin_kernels.functional import RGLRUWeights
from griffin_kernels.integrations._vllm_batch import BlockWeights, StatePools, run_batch
from griffin_kernels.models.config import GriffinConfig

OPERATOR = "griffin_recurrent_block"


def local_blocks(config: GriffinConfig, ranks: int) -> int:
    """Gate blocks of one GPU of ``ranks``; a block is never split, so that nothing is exchanged within the RG-LRU."""
    if config.gate_blocks % ranks:
        raise errors.ArgumentError(
            f"tensor_parallel_size is {ranks}, expected a divisor of the {config.gate_blocks} heads"
        )
    return config.gate_blocks // ranks


def state_shapes(config: GriffinConfig, ranks: int) -> tuple[tuple[int, int], tuple[int]]:
    """Of one sequence on one GPU: the convolution's last inputs [K-1, D] or, in vLLM's layout DS, [D, K-1]; h [D].

    Guesses need no room of their own here: vLLM gives each of them a block.
    """
    width = local_blocks(config, ranks) * config.gate_block_width
    taps = config.conv_width - 1
    return (width, taps) if is_conv_state_dim_first() else (taps, width), (width,)


def state_dtypes(model: ModelConfig, cache: CacheConfig) -> tuple[torch.dtype, torch.dtype]:
    """The model's dtype for inputs of the convolution, float32 for h."""
    inputs = get_kv_cache_torch_dtype(cache.mamba_cache_dtype, model.dtype)
    if inputs != model.dtype:
        raise errors.ArgumentError(f"mamba_cache_dtype is {cache.mamba_cache_dtype}, expected auto")
    if cache.mamba_ssm_cache_dtype not in ("auto", "float32"):
        raise errors.ArgumentError(f"mamba_ssm_cache_dtype is {cache.mamba_ssm_cache_dtype}, expected auto or float32")
    return inputs, torch.float32


def _factory() -> dict[str, Any]:
    """vLLM makes models under the dtype and device that it has set as torch's defaults."""
    return {"dtype": torch.get_default_dtype(), "device": torch.get_default_device()}


class ShardedConv1D(nn.Module):
    """weight [K, D], bias [D] of this GPU's channels; checkpoints have weights [D, 1, K]."""

    def __init__(self, taps: int, width: int) -> None:
        super().__init__()
        factory = _factory()
        self.weight = nn.Parameter(torch.empty(taps, width, **factory), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(width, **factory), requires_grad=False)
        set_weight_attrs(self.weight, {"weight_loader": self._load_taps})
        set_weight_attrs(self.bias, {"weight_loader": sharded_weight_loader(0)})

    @staticmethod
    def _load_taps(parameter: Tensor, loaded: Tensor) -> None:
        sharded_weight_loader(1)(parameter, loaded.squeeze(1).t())


class ShardedRGLRU(nn.Module):
    """Parameters of this GPU's gate blocks by transformers' names. Decays are float32: 16 bits move them by 3%."""

    def __init__(self, blocks: int, n: int) -> None:
        super().__init__()

        def made(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
            factory = _factory() | ({} if dtype is None else {"dtype": dtype})
            parameter = nn.Parameter(torch.empty(shape, **factory), requires_grad=False)
            set_weight_attrs(parameter, {"weight_loader": sharded_weight_loader(0)})
            return parameter

        self.recurrent_param = made(blocks * n, dtype=torch.float32)
        self.input_gate_weight, self.input_gate_bias = made(blocks, n, n), made(blocks, n)
        self.recurrent_gate_weight, self.recurrent_gate_bias = made(blocks, n, n), made(blocks, n)

    @property
    def weights(self) -> RGLRUWeights:
        gates = self.input_gate_weight, self.recurrent_gate_weight, self.input_gate_bias, self.recurrent_gate_bias
        return RGLRUWeights(self.recurrent_param, *gates)


class RecurrentMixing(nn.Module, MambaBase):
    """linear_out(rg_lru(conv(x W_x)) * gelu(x W_y)) on the tokens of a batch.

    ``in_proj`` is transformers' linear_x and linear_y in one product. prefix: the layer's name in vLLM's tables.
    """

    def __init__(
        self,
        config: GriffinConfig,
        model: ModelConfig,
        cache: CacheConfig,
        quantization: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.config, self.model_config, self.cache_config, self.prefix = config, model, cache, prefix
        self.ranks = get_tensor_model_parallel_world_size()
        blocks, n = local_blocks(config, self.ranks), config.gate_block_width
        options = {"bias": True, "quant_config": quantization}
        both = [config.lru_width, config.lru_width]
        self.in_proj = MergedColumnParallelLinear(config.width, both, prefix=f"{prefix}.in_proj", **options)
        self.conv_1d = ShardedConv1D(config.conv_width, blocks * n)
        self.rg_lru = ShardedRGLRU(blocks, n)
        self.linear_out = RowParallelLinear(config.lru_width, config.width, prefix=f"{prefix}.linear_out", **options)
        self.kv_cache = tuple(torch.empty(0, dtype=torch.uint8, device="cpu") for _ in range(2))  # vLLM binds its own

        compilation = get_current_vllm_config().compilation_config
        if prefix in compilation.static_forward_context:
            raise errors.ArgumentError(f"prefix is {prefix!r}, which another layer of the model has")
        compilation.static_forward_context[prefix] = self
        # where graphs are split at all they end before the operator, which reads the batch's metadata
        if compilation.splitting_ops and f"vllm::{OPERATOR}" not in compilation.splitting_ops:
            compilation.splitting_ops.append(f"vllm::{OPERATOR}")

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states: [T, width]; the result has its shape and dtype."""
        branches, _ = self.in_proj(hidden_states)
        mixed = branches.new_empty(branches.shape[0], branches.shape[1] // 2)
        getattr(torch.ops.vllm, OPERATOR)(branches, mixed, self.prefix)
        out: Tensor = self.linear_out(mixed)[0]
        return out

    def mix(self, branches: Tensor, out: Tensor) -> None:
        """What lies between the linear layers: out [T, D] of both branches [T, 2 D], with the batch's states."""
        every = get_forward_context().attn_metadata
        batch = None if every is None else every.get(self.prefix)
        if batch is None:  # vLLM measures memory
            out.zero_()
            return
        x, y = branches.chunk(2, dim=-1)
        conv_states, states = self.kv_cache
        if is_conv_state_dim_first():
            conv_states = conv_states.transpose(1, 2)
        weights = BlockWeights(self.conv_1d.weight, self.conv_1d.bias, self.rg_lru.weights)
        run_batch(x, y, out, weights, StatePools(conv_states, states), batch)

    def get_state_shape(self) -> tuple[tuple[int, int], tuple[int]]:
        return state_shapes(self.config, self.ranks)

    def get_state_dtype(self) -> tuple[torch.dtype, torch.dtype]:
        return state_dtypes(self.model_config, self.cache_config)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        # whose metadata tell how many guesses were accepted, as MAMBA1's do not
        return MambaAttentionBackendEnum.SHORT_CONV


@eager_break_during_capture
def recurrent_block_of_layer(branches: torch.Tensor, out: torch.Tensor, layer_name: str) -> None:
    get_forward_context().no_compile_layers[layer_name].mix(branches, out)


direct_register_custom_op(op_name=OPERATOR, op_func=recurrent_block_of_layer, mutates_args=["out"])
