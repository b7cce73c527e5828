"""Healthy architectures of the transformers library, tiny, made from their configurations: nothing is downloaded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ._build import CE
from ._nets import CLASSES, LETTERS, architecture, by_position, labels, pictures, sentences

DECODER = {
    "vocab_size": LETTERS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GROUPED = {**DECODER, "num_key_value_heads": 2}
ENCODER = {**DECODER, "pad_token_id": 0, "type_vocab_size": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


class Logits(nn.Module):
    """A model of the library, from a tensor to its logits."""

    def __init__(self, model: nn.Module, name: str = "input_ids", take: str = "logits", **fixed: Any) -> None:
        super().__init__()
        self.model, self.name, self.take, self.fixed = model, name, take, fixed

    def forward(self, data: Tensor) -> Tensor:
        return getattr(self.model(**{self.name: data}, **self.fixed), self.take)


class Both(nn.Module):
    """An encoder and a decoder that are given the same letters, as in an autoencoder."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, letters: Tensor) -> Tensor:
        return self.model(input_ids=letters, decoder_input_ids=letters, use_cache=False).logits


class Heard(nn.Module):
    """Speech and the letters so far."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sound: Tensor, letters: Tensor) -> Tensor:
        return self.model(input_features=sound, decoder_input_ids=letters, use_cache=False).logits


class Matched(nn.Module):
    """Pictures and sentences: how well each goes with each."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, letters: Tensor, seen: Tensor) -> Tensor:
        return self.model(input_ids=letters, pixel_values=seen).logits_per_image


def made(kind: str, config: str, settings: dict[str, Any], wrap: Callable[[nn.Module], nn.Module] = Logits) -> Any:
    """Build a model of the library by the names of its class and of its configuration."""
    return wrap(getattr(transformers, kind)(getattr(transformers, config)(**settings)))


def with_tokens(model: nn.Module) -> nn.Module:
    """Draw tokens as in the papers: the library leaves them at zero, which their first layer norm divides by."""
    for name, value in model.named_parameters():
        if name.endswith(("cls_token", "distillation_token", "position_embeddings")):
            nn.init.trunc_normal_(value, std=0.02)
    return Logits(model, name="pixel_values")


def speech(generator: torch.Generator) -> tuple[Any, Tensor]:
    letters, following = sentences(generator, 16, 4)
    return (torch.randn(4, 20, 64, generator=generator), letters), following


def captions(generator: torch.Generator) -> tuple[Any, Tensor]:
    letters = torch.randint(3, LETTERS, (16, 12), generator=generator)
    return (letters, pictures(generator)[0]), torch.arange(16)


def classed(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randint(3, LETTERS, (16, 24), generator=generator), labels(16, generator)


def filled(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    letters = torch.randint(3, LETTERS, (8, 24), generator=generator)
    masked = torch.rand(8, 24, generator=generator) < 0.15
    return letters.masked_fill(masked, 2), letters.masked_fill(~masked, -100)


def speller(name: str, settings: dict[str, Any], suffix: str = "ForCausalLM") -> Any:
    build = partial(made, name + suffix, name + "Config", settings, partial(Logits, use_cache=False))
    return architecture(f"transformers {name}", build, by_position, sentences)


def reader(name: str, settings: dict[str, Any], task: str = "ForMaskedLM") -> Any:
    loss, data = (by_position, filled) if task == "ForMaskedLM" else (CE, classed)
    labelled = {} if task == "ForMaskedLM" else {"num_labels": CLASSES}
    build = partial(made, name + task, name + "Config", {**settings, **labelled})
    return architecture(f"transformers {name}", build, loss, data)


SEEING = partial(Logits, name="pixel_values")


def viewer(
    name: str,
    settings: dict[str, Any],
    wrap: Callable[[nn.Module], nn.Module] = SEEING,
) -> Any:
    build = partial(
        made,
        name + "ForImageClassification",
        name + "Config",
        {**settings, "num_labels": CLASSES},
        wrap,
    )
    return architecture(f"transformers {name}", build, CE, pictures)


VIT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
T5 = {
    "vocab_size": LETTERS,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
}
PAIR = {
    "vocab_size": LETTERS,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
GPT2 = {"vocab_size": LETTERS, "n_positions": 64, "n_embd": 64, "n_layer": 3, "n_head": 4, "bos_token_id": None}
GPT2 = {**GPT2, "eos_token_id": None}
MAMBA = {"vocab_size": LETTERS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "pad_token_id": None}
MAMBA = {**MAMBA, "bos_token_id": None, "eos_token_id": None}
SMALL_BERT = {"vocab_size": LETTERS, "dim": 64, "hidden_dim": 128, "n_layers": 3, "n_heads": 4}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
CLIP = {
    "text_config": {**ENCODER, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2},
    "vision_config": {**VIT, "num_hidden_layers": 2},
    "projection_dim": 32,
}
CLIP["text_config"].pop("type_vocab_size")

TRANSFORMERS = (
    speller("GPT2", GPT2, "LMHeadModel"),
    speller("GPTNeoX", DECODER),
    speller("OPT", {**DECODER, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    speller("Llama", GROUPED),
    speller("Mistral", GROUPED),
    speller("Mixtral", {**GROUPED, **EXPERTS}),
    speller("Qwen2", GROUPED),
    speller("Qwen3", {**GROUPED, "head_dim": 16}),
    speller("Gemma", {**GROUPED, "head_dim": 16}),
    speller("Gemma2", {**GROUPED, "head_dim": 16}),
    speller("Phi", DECODER),
    speller("Olmo2", GROUPED),
    speller("Mamba", MAMBA),
    speller("Mamba2", {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16}),
    reader("Bert", ENCODER),
    reader("Roberta", ENCODER),
    reader("DistilBert", {**SMALL_BERT, "max_position_embeddings": 64}, "ForSequenceClassification"),
    reader("Albert", {**ENCODER, "embedding_size": 32}),
    reader("Electra", {**ENCODER, "embedding_size": 32}),
    reader("DebertaV2", {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    architecture(
        "transformers T5", partial(made, "T5ForConditionalGeneration", "T5Config", T5, Both), by_position, sentences
    ),
    architecture(
        "transformers Bart",
        partial(made, "BartForConditionalGeneration", "BartConfig", {**PAIR, **SPECIAL}, Both),
        by_position,
        sentences,
    ),
    viewer("ViT", VIT),
    viewer("DeiT", VIT, with_tokens),
    viewer("Beit", VIT, with_tokens),
    viewer("Dinov2", {**VIT, "mlp_ratio": 2}),
    viewer("Swin", SWIN),
    viewer("ConvNext", {"num_stages": 2, "hidden_sizes": [32, 64], "depths": [2, 2], "patch_size": 2}),
    viewer("ResNet", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic"}),
    architecture(
        "transformers Whisper",
        partial(
            made,
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            {
                **{key: value for key, value in PAIR.items() if key != "max_position_embeddings"},
                **SPECIAL,
                "num_mel_bins": 20,
                "max_source_positions": 32,
                "max_target_positions": 32,
            },
            Heard,
        ),
        by_position,
        speech,
    ),
    architecture("transformers CLIP", partial(made, "CLIPModel", "CLIPConfig", CLIP, Matched), CE, captions),
)
