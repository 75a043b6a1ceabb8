"""The smallest real model: a seeded BERT of two layers with a word-piece vocabulary of its own, through the real exporter."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer

MAX_LENGTH = 48
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCE = "garden hose red blue shoe shoes run running game war space coffee grinder the of and for my order where is"
WORDS = SENTENCE.split()
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def write_base(folder: Path, *, seed: int = 0, layers: int = 2, activation: str = "gelu") -> Path:
    """A transformers model folder, as one would come from the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS), *"!?.,-'"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_LENGTH,
        hidden_act=activation,
        initializer_range=0.1,  # the usual 0.02 makes every text look the same
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=MAX_LENGTH).save_pretrained(folder)
    return folder


def write_model(folder: Path) -> Path:
    """The model folder that `model-export` makes of it."""
    from model_export.folder import export

    export(str(write_base(folder / "tiny-bert")), folder / "model")
    return folder / "model"
