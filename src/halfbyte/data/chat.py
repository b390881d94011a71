"""Conversations through a model's own chat template: the text, what of it is learned, and where the prompt ends.

A chat template is a program, so where its text puts a message's content can't be read off it. It is found out instead:
the conversation is rendered once with marks in place of the contents, which gives the template's own text between them
(the skeleton; it depends on the roles alone and is kept), and once as it is. The second must be the first with
contents for marks (their outer white space aside, which many templates trim); if it is not, the template drops or
rewrites content and the conversation is refused.

An answer is learned from the end of its generation prompt (the rendering of all that stands before it, with
`add_generation_prompt`) to its end-of-turn token. For this the generation prompt must be how the answer begins in the
whole, or a model trained on the one would be asked the other. What a template itself writes between generation prompt
and content (an empty thinking block) goes to the prompt. Where the template marks answers with {% generation %}, its
marks hold.

Rejected: searching for contents in the rendered text (a short answer stands everywhere), and rendering every prefix
of every conversation (templates that treat the last turn unlike the others, as Qwen3's, break it for no good reason).
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.errors import DataError

# Templates that write today's date would make every day another data set. This is the day that Llama 3.1's template
# falls back to.
DATE = datetime.date(2024, 7, 26)
_DATE_CALL = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_ADVICE = "set chat: off and write the prompt with a template of your own, or use a model with another chat template"

Messages = Sequence[dict[str, str]]
Span = tuple[int, int]


@dataclass(frozen=True)
class Skeleton:
    """What the template writes around the contents of a sequence of roles."""

    pieces: tuple[str, ...]  # the text before the first content, between each two, after the last
    leads: tuple[int, ...]  # for each message: characters of the piece before it that an answer begins with (a space)
    turn_end: str  # what an answer ends with: the template's text up to its end-of-turn token; "" if it has none
    last_end: str  # the same for the last answer of a conversation


@dataclass(frozen=True)
class Rendering:
    """A conversation up to the end of its last answer. Places are characters of `text`."""

    text: str
    learned: tuple[Span, ...]
    prompt_end: int  # where the last answer begins
    closed: bool  # it ends with an end-of-turn token

    def segments(self) -> tuple[list[tuple[str, bool]], int]:
        """The text cut where learning begins and ends: (text, learned) each; and how many of them are the prompt's."""
        places = {0, self.prompt_end, len(self.text)} | {place for span in self.learned for place in span}
        cuts = sorted(places)
        spans = list(itertools.pairwise(cuts))
        parts = [(self.text[a:b], any(s <= a and b <= e for s, e in self.learned)) for a, b in spans]
        return parts, cuts.index(self.prompt_end)


class ChatTemplate:
    """The chat template of a tokenizer that has one."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise DataError("the model's chat templates can't be chosen from", found=str(error), do=_ADVICE) from None
        self.template = _DATE_CALL.sub(lambda call: repr(DATE.strftime(call[2])), template)
        self.marks_answers = bool(_GENERATION.search(template))
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special = (special | set(tokenizer.all_special_tokens)) - {""}
        self._special = re.compile(
            "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)) or "$^"
        )
        self._skeletons: dict[tuple[str, ...], Skeleton | DataError] = {}

    def render(self, messages: Messages, origin: str) -> Rendering:
        """Render a conversation whose last message is the assistant's. Raises DataError."""
        roles = tuple(message["role"] for message in messages)
        skeleton = self.skeleton(roles, origin)
        text = self._render(messages, origin)
        places = _locate(text, skeleton.pieces, [message["content"] for message in messages])
        if isinstance(places, int):
            number = min(places, len(messages) - 1)
            what = f"the chat template drops or rewrites the content of message {number + 1} ({roles[number]})"
            raise DataError(what, where=origin, found=_shorten(messages[number]["content"]), do=_ADVICE)  # fmt: skip
        end = places[-1][1] + len(skeleton.last_end)
        starts = [start - lead for (start, _), lead in zip(places, skeleton.leads, strict=True)]
        ends = [stop + len(skeleton.turn_end) for _, stop in places[:-1]] + [end]
        learned = [
            span for span, role in zip(zip(starts, ends, strict=True), roles, strict=True) if role == "assistant"
        ]
        if self.marks_answers:
            learned = self._marked(messages, text, skeleton, end) or learned
        return Rendering(text[:end], tuple(learned), starts[-1], bool(skeleton.last_end))

    def _marked(self, messages: Messages, text: str, skeleton: Skeleton, end: int) -> list[Span]:
        """The spans that the template marks with {% generation %}, each with the end of its turn."""
        from transformers.utils.chat_template_utils import render_jinja_template

        _, marks = render_jinja_template(
            conversations=[list(messages)], chat_template=self.template, return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )  # fmt: skip
        spans = []
        for start, stop in marks[0]:
            for tail in (skeleton.last_end, skeleton.turn_end):
                if tail and text.startswith(tail, stop):
                    stop += len(tail)
                    break
            if start < min(stop, end):
                spans.append((start, min(stop, end)))
        return spans

    def trimmed(self) -> frozenset[str]:
        """The roles whose contents lose outer white space: those of system, user and assistant that can be asked."""
        found = set[str]()
        for roles in (("user", "assistant"), ("system", "user", "assistant")):
            messages = [{"role": role, "content": f" HALFBYTE-{role}-MARK "} for role in roles]
            try:
                text = self._render(messages, "the model's chat template")
            except DataError:  # not every template takes a system message
                continue
            found |= {message["role"] for message in messages if message["content"] not in text}
        return frozenset(found)

    def skeleton(self, roles: tuple[str, ...], origin: str) -> Skeleton:
        if roles not in self._skeletons:
            try:
                self._skeletons[roles] = self._skeleton(roles, origin)
            except DataError as error:
                self._skeletons[roles] = error
        found = self._skeletons[roles]
        if isinstance(found, DataError):
            raise DataError(found.what, where=origin, found=found.found, do=found.do)
        return found

    def _skeleton(self, roles: tuple[str, ...], origin: str) -> Skeleton:
        messages = [{"role": role, "content": f"HALFBYTE-{number}-MARK"} for number, role in enumerate(roles)]
        text, pieces = self._render(messages, origin), []
        for message in messages:
            before, mark, text = text.partition(message["content"])
            if not mark or message["content"] in text:
                raise DataError(f"the chat template drops, moves or repeats the {message['role']} message",
                                where=origin, found=f"a conversation of {', '.join(roles)}", do=_ADVICE)  # fmt: skip
            pieces.append(before)
        leads, whole = [], ""
        for number, (piece, role) in enumerate(zip(pieces, roles, strict=True)):
            whole += piece
            leads.append(self._lead(messages[:number], whole, origin) if role == "assistant" and number else 0)
            whole += messages[number]["content"]
        end = self._special.search(text)
        turn_end = text[: end.end()] if end else ""
        eos, last_end = self.tokenizer.eos_token, turn_end
        if eos and eos in text[len(turn_end) :]:  # "<|end|>\n<|endoftext|>": the turn ends, then the conversation
            last_end = text[: text.index(eos, len(turn_end)) + len(eos)]
        answers = [pieces[k + 1] for k, role in enumerate(roles[:-1]) if role == "assistant"]
        same = all(piece.startswith(turn_end) for piece in answers)
        return Skeleton((*pieces, text), tuple(leads), turn_end if same else "", last_end)

    def _lead(self, before: Messages, whole: str, origin: str) -> int:
        """Characters at the end of `whole` (all that precedes an answer's content) that belong to the answer."""
        asked = self._render(before, origin, generation_prompt=True)
        if whole.startswith(asked):
            written = whole[len(asked) :]
            return 0 if written.strip() else len(written)
        if self.marks_answers:
            return 0
        pairs = enumerate(zip(asked, whole, strict=False))
        same = next((place for place, (a, b) in pairs if a != b), min(len(asked), len(whole)))
        found = f"after {_shorten(whole[:same], end=True)} the prompt goes on with {_shorten(asked[same:])},"
        found += f" the conversation with {_shorten(whole[same:]) if whole[same:] else 'the answer'}"
        raise DataError(
            "it can't be told which tokens of this chat template are the model's answer:"
            " its generation prompt is not how the answer begins in the whole conversation",
            where=origin,
            found=found,
            do=_ADVICE,
        )

    def _render(self, messages: Messages, origin: str, *, generation_prompt: bool = False) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation_prompt, chat_template=self.template
            ))  # fmt: skip
        except Exception as error:  # a template is a program of the model's author: it may raise anything
            raise DataError("the model's chat template refuses the conversation", where=origin,
                            found=f"{', '.join(m['role'] for m in messages)}: {error or type(error).__name__}",
                            do=_ADVICE) from None  # fmt: skip


def _locate(text: str, pieces: Sequence[str], contents: Sequence[str]) -> list[Span] | int:
    """Where each content stands in `text`, which must be `pieces` with contents between; or the first that misfits."""
    if not text.startswith(pieces[0]):
        return 0
    places, place = [], len(pieces[0])
    for number, content in enumerate(contents):
        following, last = pieces[number + 1], number == len(contents) - 1
        for form in _forms(content):
            end = place + len(form) + len(following)
            if text.startswith(form + following, place) and (not last or end == len(text)):
                places.append((place, place + len(form)))
                place = end
                break
        else:
            return number
    return places


def _forms(content: str) -> list[str]:
    """A content as templates write it: as it is, or with outer white space trimmed."""
    forms = [content, content.strip(), content.lstrip(), content.rstrip()]
    return list(dict.fromkeys([*forms, content.strip("\n"), content.lstrip("\n"), content.rstrip("\n")]))


def _shorten(text: str, *, end: bool = False, length: int = 60) -> str:
    if len(text) > length:
        text = "..." + text[-length:] if end else text[:length] + "..."
    return repr(text)
