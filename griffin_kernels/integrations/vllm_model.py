"""RecurrentGemma for vLLM, whose registry imports this by name; see docs/serving.md.

Attention, linear layers and norms are vLLM's; convolution, RG-LRU and its gate are ``recurrent_block_step`` and
``recurrent_block_extend`` on vLLM's pages. Written after model_executor/models/lfm2.py and gemma.py of vLLM 0.33.
"""

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

try:
    from vllm.compilation.decorators import support_torch_compile
    from vllm.config import CacheConfig, VllmConfig
    from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
    from vllm.model_executor.layers.activation import GeluAndMul
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.model_executor.layers.mamba.mamba_utils import get_temporal_copy_spec
    from vllm.model_executor.layers.quantization import QuantizationConfig
    from vllm.model_executor.layers.rotary_embedding import get_rope
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
    from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid, SupportsLoRA, SupportsPP, SupportsQuant
    from vllm.model_executor.models.utils import (
        AutoWeightsLoader,
        PPMissingLayer,
        WeightsMapper,
        extract_layer_index,
        make_empty_intermediate_tensors_factory,
        make_layers,
        maybe_prefix,
    )
    from vllm.sequence import IntermediateTensors

    from griffin_kernels.integrations._vllm_recurrent import RecurrentMixing, state_dtypes, state_shapes
except ImportError as error:
    raise ImportError(f"this model needs vLLM 0.33, or one with its interfaces: {error}") from error

from griffin_kernels import errors
from griffin_kernels.models import config_from_transformers
from griffin_kernels.models.config import GriffinConfig


class WindowedAttention(nn.Module):
    """vLLM's attention to the last ``window`` tokens, the token itself included, with RoPE on half of each head."""

    def __init__(
        self,
        config: GriffinConfig,
        positions: int,
        cache: CacheConfig,
        quantization: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        ranks = get_tensor_model_parallel_world_size()
        if config.num_heads % ranks:
            raise errors.ArgumentError(
                f"tensor_parallel_size is {ranks}, expected a divisor of the {config.num_heads} heads"
            )
        heads, kv_heads, size = config.num_heads // ranks, max(1, config.num_kv_heads // ranks), config.head_dim
        self.sizes = [heads * size, kv_heads * size, kv_heads * size]
        totals = config.num_heads, config.num_kv_heads
        named = {"quant_config": quantization, "prefix": f"{prefix}.qkv_proj"}
        self.qkv_proj = QKVParallelLinear(config.width, size, *totals, bias=False, **named)
        named = {"quant_config": quantization, "prefix": f"{prefix}.o_proj"}
        self.o_proj = RowParallelLinear(config.num_heads * size, config.width, bias=True, **named)
        rope = {"rope_type": "default", "rope_theta": config.rope_base, "partial_rotary_factor": 0.5}
        self.rotary_emb = get_rope(size, max_position=positions, rope_parameters=rope, is_neox_style=True)
        self.attn = Attention(
            heads,
            size,
            size**-0.5,
            num_kv_heads=kv_heads,
            cache_config=cache,
            quant_config=quantization,
            per_layer_sliding_window=config.window,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """hidden_states: [T, width]; the result has its shape and dtype."""
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split(self.sizes, dim=-1)
        q, k = self.rotary_emb(positions, q, k)
        out: Tensor = self.o_proj(self.attn(q, k, v))[0]
        return out


class GatedGeluMLP(nn.Module):
    """down(gelu(gate) * up), with biases."""

    def __init__(self, config: GriffinConfig, quantization: QuantizationConfig | None = None, prefix: str = "") -> None:
        super().__init__()
        options = {"bias": True, "quant_config": quantization}
        both = [config.mlp_width, config.mlp_width]
        self.gate_up_proj = MergedColumnParallelLinear(config.width, both, prefix=f"{prefix}.gate_up_proj", **options)
        self.act_fn = GeluAndMul(approximate="tanh")
        self.down_proj = RowParallelLinear(config.mlp_width, config.width, prefix=f"{prefix}.down_proj", **options)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states: [T, width]; the result has its shape and dtype."""
        gate_up, _ = self.gate_up_proj(hidden_states)
        out: Tensor = self.down_proj(self.act_fn(gate_up))[0]
        return out


class ServedLayer(nn.Module):
    """One residual block; what it adds is added by the next norm."""

    def __init__(self, config: GriffinConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        model, cache = vllm_config.model_config, vllm_config.cache_config
        options = {"quantization": vllm_config.quant_config, "prefix": f"{prefix}.temporal_block"}
        self.recurrent = config.block_types[extract_layer_index(prefix)] == "recurrent"
        self.temporal_block: RecurrentMixing | WindowedAttention
        if self.recurrent:
            self.temporal_block = RecurrentMixing(config, model, cache, **options)
        else:
            self.temporal_block = WindowedAttention(config, model.max_model_len, cache, **options)
        self.mlp_block = GatedGeluMLP(config, vllm_config.quant_config, f"{prefix}.mlp_block")
        self.temporal_pre_norm = GemmaRMSNorm(config.width, eps=config.norm_eps)
        self.channel_pre_norm = GemmaRMSNorm(config.width, eps=config.norm_eps)

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """hidden_states, residual: [T, width], whose sum is the stream; None before the first layer."""
        if residual is None:
            residual = hidden_states
            hidden_states = self.temporal_pre_norm(hidden_states)
        else:
            hidden_states, residual = self.temporal_pre_norm(hidden_states, residual)
        if self.recurrent:
            hidden_states = self.temporal_block(hidden_states)
        else:
            hidden_states = self.temporal_block(positions, hidden_states)
        hidden_states, residual = self.channel_pre_norm(hidden_states, residual)
        return self.mlp_block(hidden_states), residual


@support_torch_compile
class ServedRecurrentGemma(nn.Module):
    """Embedding, residual blocks and the last norm; a piece of them where layers are shared out over GPUs."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = config = config_from_transformers(vllm_config.model_config.hf_config)
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.width)
        # rounded as in transformers, whatever the dtype
        self.embedding_scale = float(torch.tensor(math.sqrt(config.width), dtype=torch.bfloat16, device="cpu"))
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_layers, lambda prefix: ServedLayer(config, vllm_config, prefix), prefix=f"{prefix}.layers"
        )
        last = get_pp_group().is_last_rank
        self.final_norm = GemmaRMSNorm(config.width, eps=config.norm_eps) if last else PPMissingLayer()
        names = ["hidden_states", "residual"]
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(names, config.width)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embedded: Tensor = self.embed_tokens(input_ids) * self.embedding_scale
        return embedded

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """input_ids, positions: int64 [T]; inputs_embeds: [T, width] in their place, scaled already.

        Returns [T, width]; what the next piece goes on from if this is not the last.
        """
        residual = None
        if not get_pp_group().is_first_rank:
            assert intermediate_tensors is not None
            hidden_states, residual = intermediate_tensors["hidden_states"], intermediate_tensors["residual"]
        elif inputs_embeds is not None:
            hidden_states = inputs_embeds
        else:
            assert input_ids is not None
            hidden_states = self.embed_input_ids(input_ids)
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            hidden_states, residual = layer(positions, hidden_states, residual)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden_states, "residual": residual})
        normed: Tensor = self.final_norm(hidden_states, residual)[0]
        return normed


class RecurrentGemmaForCausalLM(nn.Module, HasInnerState, IsHybrid, SupportsLoRA, SupportsPP, SupportsQuant):
    """RecurrentGemma as vLLM serves it: Hawk's and Griffin's layers in transformers' checkpoints.

    vllm_config.model_config.hf_config: transformers' RecurrentGemmaConfig. Raises ArgumentError for settings that the
    published models do not have, and for numbers of GPUs that do not divide the heads.
    """

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            ".linear_x": (".in_proj", 0),
            ".linear_y": (".in_proj", 1),
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        }
    )
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "in_proj": ["linear_x", "linear_y"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    embedding_modules: ClassVar[dict[str, str]] = {
        "embed_tokens": "input_embeddings",
        "lm_head": "output_embeddings",
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.quant_config = vllm_config.quant_config
        self.model = ServedRecurrentGemma(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        config = self.model.config
        if get_pp_group().is_last_rank:
            named = {"quant_config": self.quant_config, "prefix": maybe_prefix(prefix, "lm_head")}
            head = ParallelLMHead(config.vocab_size, config.width, **named)
            self.lm_head = head.tie_weights(self.model.embed_tokens)
        else:
            self.lm_head = PPMissingLayer()
        self.logits_processor = LogitsProcessor(config.vocab_size, soft_cap=config.logits_softcap)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, int], tuple[int]]:
        config = config_from_transformers(vllm_config.model_config.hf_config)
        return state_shapes(config, vllm_config.parallel_config.tensor_parallel_size)

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, torch.dtype]:
        return state_dtypes(vllm_config.model_config, vllm_config.cache_config)

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[Any, Any]:
        # guesses have a block each for the convolution's inputs too, not one with room for all
        return get_temporal_copy_spec, get_temporal_copy_spec

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **others: Any,
    ) -> Tensor | IntermediateTensors:
        """As ServedRecurrentGemma."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits [T, V] of hidden_states [T, width], softcap included; None where another GPU has them."""
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take in a checkpoint by transformers' names; returns the names of the parameters that were filled."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded
