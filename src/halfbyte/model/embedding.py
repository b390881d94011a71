"""An embedding that stays in the type it is stored in: rows are cast when they are looked up, not the whole matrix."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor, nn


class FrozenEmbedding(nn.Embedding):
    """Stands where an embedding stood; hands out rows in `dtype`, whatever the type of `weight` [V, H], on the ids'
    device, wherever the weight lies.

    Some families scale their rows; the rows that are looked up go through the base's own forward as a small embedding.
    """

    dtype: torch.dtype
    _base: tuple[nn.Embedding]  # in a tuple, so that its parameters are not listed twice

    @staticmethod
    def fits(embedding: nn.Module) -> bool:
        """Whether `embedding` takes token ids and nothing else."""
        return isinstance(embedding, nn.Embedding) and len(inspect.signature(embedding.forward).parameters) == 1

    @classmethod
    def from_base(cls, embedding: nn.Embedding, dtype: torch.dtype) -> FrozenEmbedding:
        """Share the weight of `embedding`, which fits."""
        made = cls(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        made.weight, made.dtype, made._base = embedding.weight, dtype, (embedding,)
        return made

    def forward(self, input: Tensor) -> Tensor:
        rows = self.weight.detach()[input.reshape(-1).to(self.weight.device)].to(input.device, self.dtype)
        small = copy.copy(self._base[0])
        small._parameters = {"weight": rows}  # type: ignore[dict-item]
        small.padding_idx = None
        return small(torch.arange(len(rows), device=rows.device).view(input.shape))  # type: ignore[no-any-return]
