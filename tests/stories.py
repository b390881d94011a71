"""stories260K, a real pretrained model of 260,032 parameters, as a local Hugging Face folder with a tokenizer.

Its vocabulary is a list of SentencePiece pieces with scores. SentencePiece's BPE joins, again and again, the adjacent
pair whose union has the highest score; so every split of a piece into two pieces is a merge, ranked by the piece.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

SOURCE = Path(__file__).parent / "data" / "stories260K"
SPACE = "▁"
# What the greedy continuation of an empty prompt begins with, as llama2.c's doc/stories260K.md prints it (MIT).
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\""
)


def stories(folder: Path) -> Path:
    """Put the model and its tokenizer into `folder`, which is made, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(SOURCE / name, folder / name)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    pieces = [
        (piece.replace(" ", SPACE), score) for piece, score in json.loads((SOURCE / "vocab_scores.json").read_text())
    ]
    names = ["<unk>", "<s>", "</s>", *(piece for piece, _ in pieces[3:])]
    vocabulary = {piece: index for index, piece in enumerate(names)}
    ranked = sorted(pieces[259:], key=lambda pair: -pair[1])  # after the specials and the 256 bytes
    merges = [
        (piece[:cut], piece[cut:])
        for piece, _ in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    made.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
