"""Tiny vision-language models of the families that policies may be built on: random weights, a tokenizer of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ("touch", "the", "red", "blue", "block")


def save_tiny_model(folder: Path, kind: str, seed: int = 0) -> str:
    """Write a model of that kind with its tokenizer; the folder's name."""
    import transformers

    torch.manual_seed(seed)
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    config: Any
    if kind == "smolvlm":
        config = transformers.SmolVLMConfig(
            text_config={"model_type": "llama", **text}, vision_config=vision, image_token_id=15, scale_factor=2
        )
        model: Any = transformers.SmolVLMForConditionalGeneration(config)
    else:
        config = transformers.PaliGemmaConfig(
            text_config={"model_type": "gemma", **text},
            vision_config={
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
                **vision,
                "projection_dim": 16,
            },
            image_token_index=15,
            projection_dim=16,
        )
        model = transformers.PaliGemmaForConditionalGeneration(config)
    model.save_pretrained(folder)
    _save_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    return str(folder)


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3} | {word: 4 + index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
