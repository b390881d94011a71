"""Train a small base model from scratch on text files: the way the demo's `base/` was made.

    python tools/train_tiny_base.py --out tiny-base --text children.txt novels.txt --problems gsm8k_train.jsonl

A text file holds books, separated by lines `<|endofbook|>`; a problem file is JSONL with `question` and `answer`. Books
are cut at paragraphs into pieces of about 1,800 characters, their wrapped lines joined; every 200th piece is held out.
The tokenizer is a byte-level BPE in which each digit is a token of its own, so that numbers are read digit by digit.
All pieces, each between `<|bos|>` and `<|eos|>`, make one stream that is cut into windows, so no token is padding; a
window may begin within a piece and hold the end of another, which costs a little and keeps the script short. Products
are in bf16 where this processor is fast at it, else in fp32.

The defaults make the shipped model: 7.5 M parameters, 4,958 steps, 85 minutes on 2 cores. `--size` names another size
with the same tokenizer, data and steps; an option that is given counts, whatever the size says. Same seed and same
number of threads, same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from halfbyte.kernels.compute import fastest

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"


@dataclass(frozen=True)
class Recipe:
    vocabulary: int = 4096
    hidden: int = 256
    mlp: int = 704
    layers: int = 8
    heads: int = 4
    context: int = 1024  # positions that the model allows
    window: int = 256  # tokens that it is trained on at once
    batch: int = 16  # windows in a step
    steps: int = 4958
    warmup: int = 150  # steps
    constant: float = 0.7  # share of the steps before the rate falls
    learning_rate: float = 2e-3
    last_rate: float = 0.02  # share of the rate that the last step has
    weight_decay: float = 0.1  # on matrices
    clip: float = 1.0
    hold_out: int = 200  # one piece in so many
    seed: int = 0


SIZES: dict[str, dict[str, int]] = {  # what differs from the defaults
    "small": {"hidden": 128, "mlp": 352, "layers": 6, "heads": 2},  # 1.7 M parameters
    "base": {},  # 7.5 M, the shipped one
    "large": {"hidden": 384, "mlp": 1056, "layers": 8, "heads": 6},  # 16 M
}


def book_pieces(file: Path, characters: int = 1800) -> Iterator[str]:
    """Whole paragraphs, as many as it takes to reach `characters`, of one book each."""
    for book in file.read_text(encoding="utf-8").split("<|endofbook|>"):
        piece: list[str] = []
        for paragraph in re.split(r"\n\s*\n", book):
            joined = " ".join(paragraph.split())
            if joined:
                piece.append(joined)
            if sum(map(len, piece)) >= characters:
                yield "\n".join(piece)
                piece = []
        if piece:
            yield "\n".join(piece)


def problems(file: Path) -> Iterator[str]:
    """Problems as "Question: ... Answer: ...", without GSM8K's calculator marks (<<48/2=24>>)."""
    for line in file.read_text(encoding="utf-8").splitlines():
        problem = json.loads(line)
        answer = re.sub(r"<<.*?>>", "", problem["answer"])
        yield f"Question: {problem['question']}\nAnswer: {answer}"


def train_tokenizer(texts: Sequence[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=recipe.context
    )


def windows(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Tensor:
    """int64 [windows, window]: the stream of all texts, cut; the last tokens that fill no window are dropped."""
    encoded = tokenizer(list(texts))["input_ids"] if texts else []
    stream = [token for ids in encoded for token in [*ids, tokenizer.eos_token_id]]
    count = len(stream) // recipe.window
    return torch.tensor(stream[: count * recipe.window]).view(count, recipe.window)


def rate(step: int, recipe: Recipe) -> float:
    """Learning rate of `step` (0-based): linear warm-up, constant, then linear to `last_rate` of it."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    fall = recipe.constant * recipe.steps
    through = max(0.0, (step + 1 - fall) / max(1.0, recipe.steps - fall))
    return recipe.learning_rate * (1 - (1 - recipe.last_rate) * through)


def batches(data: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    """int64 [batch, window], without end; each pass over the data has an order of its own."""
    generator = torch.Generator().manual_seed(recipe.seed)
    pending = torch.empty(0, dtype=torch.int64)
    while True:
        while len(pending) < recipe.batch:
            pending = torch.cat([pending, torch.randperm(len(data), generator=generator)])
        yield data[pending[: recipe.batch]]
        pending = pending[recipe.batch :]


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, data: Tensor, recipe: Recipe) -> float:
    """Mean loss a token, in nats."""
    losses = [float(model(input_ids=part, labels=part).loss) * len(part) for part in torch.split(data, recipe.batch)]
    return sum(losses) / len(data)


def train(model: LlamaForCausalLM, data: Tensor, held_out: Tensor, recipe: Recipe) -> None:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))
    narrow = fastest().dtype == torch.bfloat16
    start = time.monotonic()
    for step, batch in zip(range(recipe.steps), batches(data, recipe), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, recipe)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        optimiser.zero_grad()
        if not math.isfinite(loss.item()):
            raise SystemExit(f"the loss of step {step + 1} is not finite; a smaller learning rate may help")
        if step % 100 == 99 or step == recipe.steps - 1:
            tokens = (step + 1) * batch.numel() / (time.monotonic() - start)
            print(f"step {step + 1}/{recipe.steps}  loss {loss.item():.3f}  {tokens:,.0f} tokens/s", flush=True)
        if len(held_out) and (step % 1000 == 999 or step == recipe.steps - 1):
            print(f"  held-out loss a token: {held_out_loss(model, held_out, recipe):.3f}", flush=True)


def make(books: Sequence[Path], problem_files: Sequence[Path], out: Path, recipe: Recipe) -> Path:
    """Train tokenizer and model, and save both to `out` (weights in bf16)."""
    torch.manual_seed(recipe.seed)
    pieces = [piece for file in books for piece in book_pieces(file)]
    kept = [piece for index, piece in enumerate(pieces) if (index + 1) % recipe.hold_out]
    held = [piece for index, piece in enumerate(pieces) if not (index + 1) % recipe.hold_out]
    kept += 2 * [text for file in problem_files for text in problems(file)]
    tokenizer = train_tokenizer(kept, recipe)
    data, held_out = windows(kept, tokenizer, recipe), windows(held, tokenizer, recipe)
    if not len(data):
        raise SystemExit(f"the texts fill no window of {recipe.window} tokens")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters():,} parameters, {data.numel():,} tokens, {held_out.numel():,} held out")
    train(model, data, held_out, recipe)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="books")
    parser.add_argument("--problems", type=Path, nargs="*", default=[], help="question and answer, JSONL")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--size", choices=SIZES, default="base", help="the size of the model (default: base)")
    for option in dataclasses.fields(Recipe):
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=type(option.default))
    given = vars(parser.parse_args(arguments))
    make(given["text"], given["problems"], given["out"], recipe_of(given["size"], given))


def recipe_of(size: str, given: Mapping[str, Any]) -> Recipe:
    """The recipe of a size, with those of its options that are `given` and not None."""
    names = [option.name for option in dataclasses.fields(Recipe)]
    chosen = {name: given[name] for name in names if given.get(name) is not None}
    return Recipe(**{**SIZES[size], **chosen})


if __name__ == "__main__":
    main()
