"""Tiny models of every family that transformers has, for model_checks.py.

The default config of a family is made again with its sizes, known by their names, set
small; what some families need beside that stands in a table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tiny
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

MOST = 20_000_000  # weights of what is still tiny
LABELS = ("bad", "good")

# By the name of the attribute, wherever the default config has a larger int there.
_SIZES = (
    (
        32,
        "hidden_size d_model n_embd dim emb_dim model_dim embedding_size lru_width"
        " vision_hidden_size text_hidden_size width projection_dim embed_dim"
        " decoder_hidden_size d_latents cross_attention_hidden_size"
        " hidden_size_per_layer_input true_hidden_size intra_bottleneck_size"
        " embedding_hidden_size out_hidden_size n_embed attn_hidden_size"
        " attention_hidden_size router_hidden_size image_size",
    ),
    (
        64,
        "intermediate_size ffn_dim d_ff n_inner inner_dim encoder_ffn_dim d_inner dff"
        " decoder_ffn_dim moe_intermediate_size shared_expert_intermediate_size"
        " ffn_hidden_size feed_forward_size intermediate_size_mlp dim_ff mlp_dim"
        " expert_ffn_hidden_size shared_intermediate_size hidden_dim"
        " moe_shared_expert_intermediate_size dense_intermediate_size",
    ),
    (
        4,
        "num_experts num_local_experts n_routed_experts moe_num_experts"
        " num_routed_experts zero_expert_num patch_size",
    ),
    (
        2,
        "num_hidden_layers num_layers n_layer n_layers encoder_layers depth"
        " decoder_layers num_decoder_layers num_encoder_layers num_mem_blocks"
        " num_blocks num_self_attends_per_block num_experts_per_tok moe_k"
        " num_attention_heads num_key_value_heads n_head n_heads num_heads"
        " encoder_attention_heads decoder_attention_heads num_kv_heads n_kv_heads"
        " mamba_n_heads mamba_num_heads swa_num_attention_heads"
        " swa_num_key_value_heads linear_num_key_heads linear_num_value_heads"
        " num_global_key_value_heads index_n_heads num_self_attention_heads"
        " num_cross_attention_heads num_experts_per_token moe_topk router_top_k",
    ),
    (
        16,
        "head_dim attention_head_size d_kv d_head dim_head qk_nope_head_dim kv_channels"
        " v_head_dim mamba_d_head mamba_head_dim global_head_dim swa_head_dim"
        " linear_key_head_dim linear_value_head_dim mamba_d_state ssm_state_size"
        " index_head_dim q_lora_rank kv_lora_rank swa_v_head_dim",
    ),
    (8, "qk_rope_head_dim time_step_rank mamba_dt_rank"),
    (1, "n_group topk_group n_groups mamba_n_groups first_k_dense_replace"),
    (512, "max_position_embeddings n_positions n_ctx max_seq_len"),
)
SMALL = {name: size for size, names in _SIZES for name in names.split()}

# What the sizes above do not say, by model type.
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
_HYBRID = ["linear_attention", "full_attention"]
SPECIAL: dict[str, dict[str, Any]] = {
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "roc_bert": {"shape_embed_dim": 8, "pronunciation_embed_dim": 8},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "dots3_note_text": {"per_layer_config": {}},
    "dots3_note": {"per_layer_config": {}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_text": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "qwen3_5_text": {"layer_types": _HYBRID},
    "qwen3_5_moe_text": {"layer_types": _HYBRID},
    "qwen3_next": {"layer_types": _HYBRID},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8, "n_head": 4},
    "bailing_hybrid": {"layer_group_size": 2, "n_group": 1, "topk_group": 1},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8}},
    "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention"]},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lilt": {"hidden_size": 48},  # a multiple of 6 boxes
    "phimoe": {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0},
    "reformer": {"axial_pos_embds": False, "hash_seed": 0},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "zamba": {"layers_block_type": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
}


def tiny_config(
    config_class: type[PreTrainedConfig], vocabulary: int, special: dict[str, int]
) -> PreTrainedConfig:
    """Return a config of the family with some ten thousand weights a layer.

    Args:
        special: ids of the tokenizer's special tokens by name, such as ``pad``.
    """
    return config_class(**_shrunk(config_class, vocabulary, special))


def _shrunk(
    config_class: type[PreTrainedConfig], vocabulary: int, special: dict[str, int]
) -> dict[str, Any]:
    default = config_class()
    small: dict[str, Any] = {}
    for name, value in vars(default).items():
        whole = type(value) is int
        if isinstance(value, PreTrainedConfig):
            inner = _shrunk(type(value), vocabulary, special)
            small[name] = inner | {"model_type": value.model_type}
        elif name in ("vocab_size", "vocab_size_per_layer_input"):
            small[name] = vocabulary
        elif name == "head_dim" and "qk_rope_head_dim" in vars(default):
            continue  # follows
        elif whole and name in SMALL:
            small[name] = min(value, SMALL[name])
        elif name.endswith("_token_id"):
            found = special.get(name.removesuffix("_token_id"))
            if found is not None or whole:
                small[name] = special["eos"] if found is None else found
    return small | SPECIAL.get(default.model_type, {})


class TaskKind(NamedTuple):
    """A recipe, the families that transformers has for it, and how they are loaded."""

    recipe: str
    mapping: Any
    auto_class: Any
    flags: tuple[str, ...]


PLAIN = ("--ladder", "false", "--contrastive_weight", "0")
TASKS = {
    "mlm": TaskKind(
        "mlm",
        MODEL_FOR_MASKED_LM_MAPPING,
        AutoModelForMaskedLM,
        ("--block_policy", "row", "--num_examples", "2"),
    ),
    "classify": TaskKind(
        "classify",
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoModelForSequenceClassification,
        PLAIN,
    ),
    "generate": TaskKind(
        "generate",
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoModelForCausalLM,
        ("--block_policy", "row", "--compile_layers", "false"),
    ),
}


def families(task: str) -> dict[str, Any]:
    """Return the config class of each family by its model type, sorted."""
    found = {c.model_type: c for c in TASKS[task].mapping}
    return dict(sorted(found.items()))


def tokenizer_of(task: str) -> Any:
    """Return the tokenizer of the tiny models, which has a pad token."""
    tokenizer = tiny.wordpiece_tokenizer()
    if task == "generate":
        tokenizer = tiny.bpe_tokenizer()
    return tokenizer


def special_ids(tokenizer: Any) -> dict[str, int]:
    """Return the ids of special tokens by name; an encoder begins with cls."""
    names = ("pad", "bos", "eos", "cls", "sep", "mask")
    found = {name: getattr(tokenizer, f"{name}_token_id") for name in names}
    found["bos"] = found["cls"] if found["bos"] is None else found["bos"]
    found["eos"] = found["sep"] if found["eos"] is None else found["eos"]
    found["decoder_start"] = found["bos"]
    return {name: token for name, token in found.items() if token is not None}


def tiny_model(task: str, config_class: Any) -> Any:
    """Return a tiny random model of a family, on the device of the caller."""
    tokenizer = tokenizer_of(task)
    size = len(tokenizer) + 8  # some classes of tokenizers add their own
    config = tiny_config(config_class, size, special_ids(tokenizer))
    if task == "generate" and hasattr(config, "is_decoder"):
        config.is_decoder = True  # BERT as a decoder
    if config.is_encoder_decoder and not hasattr(config, "decoder_start_token_id"):
        config.decoder_start_token_id = 0  # T5's files have one
    config.id2label = dict(
        enumerate(LABELS)
    )  # of BART, two that have no names get lost
    config.label2id = {name: i for i, name in enumerate(LABELS)}
    model = TASKS[task].auto_class.from_config(config)
    weights = sum(p.numel() for p in model.parameters())
    if weights > MOST:
        raise ValueError(f"{weights:,} weights")
    return model


def can_be_built(task: str, family: str) -> bool:
    """Return whether ``tiny_model`` makes something, of no memory."""
    try:
        with torch.device("meta"):
            tiny_model(task, families(task)[family])
    except Exception:  # whatever a family says to odd sizes
        return False
    return True
