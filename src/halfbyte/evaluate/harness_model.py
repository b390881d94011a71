"""Our model behind the interface of EleutherAI's lm-evaluation-harness: the only file that subclasses a class of it.

Tokens are made as everywhere in halfbyte (`data.encode`): BOS stands once where the tokenizer itself puts one, and a
prompt's tokens never depend on what follows. Two habits are the harness's own, so that scores compare with published
ones: white space at the end of a context belongs to the continuation, and a context that is too long for the model
loses its beginning (its item is counted in `cut`, and the result warns).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from halfbyte.config import DecodingConfig
from halfbyte.data.encode import Encoder
from halfbyte.data.template import Example
from halfbyte.errors import ConfigError
from halfbyte.evaluate.generate import Generated, Progress, check_lengths, context_tokens, generate
from halfbyte.evaluate.journal import Journal
from halfbyte.evaluate.likelihood import learned_log_likelihoods, option_likelihoods

if TYPE_CHECKING:
    from halfbyte.model.build import Model

_LONGEST = 256  # new tokens where a task does not say: the harness's own default
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_GREEDY = {"until", "do_sample", "temperature", *_LENGTHS}  # what a task may say of decoding without a warning
_UNLIMITED = 2**62

Tokens = list[int]


class HarnessModel(LM):  # type: ignore[misc]
    """Answers the harness's three kinds of requests, each in batches.

    `first` is called before the first answer, when the harness has made all its requests; `journal` keeps the answers.
    `cut`: items whose context lost its beginning; `ignored`: options of decoding that mean nothing here; `failed`: what
    the model raised, so that it is not taken for a fault of the task; `tokens_per_second`: of the last call, decoded
    where answers are generated and read where they are scored.
    """

    def __init__(
        self,
        model: Model,
        progress: Progress | None = None,
        journal: Journal | None = None,
        first: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.progress, self.journal = model, progress, journal or Journal()
        self._first_call = first
        self.encoder = Encoder(model.tokenizer, "off")
        self.context = context_tokens(model) or _UNLIMITED
        self.start = self.encoder.prefix or [self._first()]
        self._cut: set[Any] = set()
        self.ignored: set[str] = set()
        self.failed: Exception | None = None
        self.tokens_per_second: float | None = None

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy decoding says just that) of each (context, continuation)."""
        self._begin()
        pairs = self._pairs([request.args[:2] for request in requests])
        check_lengths(self.model, [len(own) for _, own in pairs], what="continuations")
        shared: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}  # options of a context, each once, in order
        asked = [(tuple(self._fitting(context, len(own) - 1, request.doc_id)), tuple(own))
                 for (context, own), request in zip(pairs, requests, strict=True)]  # fmt: skip
        for context, own in asked:
            if own:
                shared.setdefault(context, {})[own] = None
        began = time.perf_counter()
        with self._asking():
            found = option_likelihoods(self.model, [list(context) for context in shared],
                                       [[list(own) for own in options] for options in shared.values()],
                                       progress=self.progress, journal=self.journal)  # fmt: skip
        self._count(sum(len(context) + sum(map(len, options)) for context, options in shared.items()), began)
        known = {context: dict(zip(options, row, strict=True))
                 for (context, options), row in zip(shared.items(), found, strict=True)}  # fmt: skip
        return [(known[c][own].nats, known[c][own].greedy) if own else (0.0, True) for c, own in asked]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-probability in nats of each (text,), BOS (else EOS) before it; long texts in windows, each token once."""
        self._begin()
        texts = [self._bare(str(request.args[0])) for request in requests]
        ids: list[Tokens] = []
        learned: list[list[bool]] = []
        owner: list[int] = []
        for at, text in enumerate(texts):
            width = min(self.context, len(text) + 1)
            for window in get_rolling_token_windows(text, self.start[0], width, 1):
                before, own = make_disjoint_window(window)
                ids.append([*before, *own])
                learned.append([False] * len(before) + [True] * len(own))
                owner.append(at)
        began = time.perf_counter()
        with self._asking():
            nats = learned_log_likelihoods(self.model, ids, learned, progress=self.progress, journal=self.journal)
        self._count(sum(map(len, ids)), began)
        sums = [0.0] * len(texts)
        for at, value in zip(owner, nats, strict=True):
            sums[at] += value
        return sums

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers to each (context, options). Raises ConfigError for a task that wants sampling or beams."""
        self._begin()
        texts = [""] * len(requests)
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for at, request in enumerate(requests):
            alike.setdefault(self._decoding(request.args[1]), []).append(at)
        made: list[Generated] = []
        for (longest, stop), rows in alike.items():
            prompts = [self._fitting(self._prompt(requests[at].args[0]), longest, requests[at].doc_id) for at in rows]
            decoding = DecodingConfig(max_new_tokens=longest, stop=list(stop))
            with self._asking():
                made.append(generate(self.model, prompts, decoding, progress=self.progress, journal=self.journal))
            for at, text in zip(rows, made[-1].texts, strict=True):
                texts[at] = text
        seconds = sum(one.decode_seconds for one in made)
        self.tokens_per_second = sum(one.decoded_tokens for one in made) / seconds if seconds else None
        return texts

    @property
    def cut(self) -> int:
        return len(self._cut)

    def _begin(self) -> None:
        first, self._first_call = self._first_call, None
        if first is not None:
            first()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failed = error
            raise

    def _count(self, tokens: int, began: float) -> None:
        """Tokens read a second; not known where some were read before an interruption."""
        seconds = max(1e-9, time.perf_counter() - began)
        self.tokens_per_second = None if self.journal.resumed else tokens / seconds

    def _first(self) -> int:
        """What a text is predicted from where the tokenizer puts nothing before it."""
        bos = self.model.tokenizer.bos_token_id
        return int(self.encoder.eos if bos is None else bos)

    def _bare(self, text: str) -> Tokens:
        return list(self.model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _prompt(self, text: str) -> Tokens:
        return self.encoder.prompt(Example.of_prompt(text)) or list(self.start)

    def _pairs(self, texts: Sequence[tuple[str, str]]) -> list[tuple[Tokens, Tokens]]:
        """The tokens of each (context, continuation)."""
        examples = []
        for context, continuation in texts:
            bare = context.rstrip()
            examples.append(replace(Example.of_prompt(bare), completion=context[len(bare) :] + continuation))
        pairs, end = [], str(self.model.tokenizer.eos_token)
        for row, example in zip(self.encoder.items(examples), examples, strict=True):
            own = row.ids[row.prompt_tokens :]
            if not (example.completion or "").endswith(end):
                own = own[:-1]  # the EOS that the encoder put there
            pairs.append((row.ids[: row.prompt_tokens] or list(self.start), own))
        return pairs

    def _fitting(self, context: Tokens, after: int, item: Any) -> Tokens:
        """The end of `context` that the model can hold together with `after` more tokens, but at least one token."""
        room = max(1, self.context - after)
        if len(context) <= room:
            return context
        self._cut.add(item)
        return context[-room:]

    def _decoding(self, options: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        """(most new tokens, stop strings) of a request."""
        sampled = options.get("do_sample") and float(options.get("temperature", 1.0)) > 0
        if sampled or int(options.get("num_beams") or 1) > 1:
            said = {key: options[key] for key in ("do_sample", "temperature", "num_beams") if key in options}
            raise ConfigError("the harness task wants sampled answers, and halfbyte decodes greedily", found=said,
                              do="take a task whose generation_kwargs say do_sample: false")  # fmt: skip
        self.ignored |= set(options) - _GREEDY
        longest = next((int(options[key]) for key in _LENGTHS if options.get(key) is not None), _LONGEST)
        until = options.get("until") or []
        return longest, tuple([until] if isinstance(until, str) else map(str, until))
