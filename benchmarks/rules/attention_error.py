"""What compressing the cache does to attention itself: how far its outputs are off, measured in a run that is not
compressed.

A model may make much or little of its history, and videos differ for many reasons; this figure sees only what a rule
of compression is answerable for.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from flowcache.kv_cache import CompressedKVCache
from inference.kv_cache import KVCache, KVGeometry
from inference.model.attention import attend
from inference.schedule import Schedule, Step


class ShadowedCache(KVCache):
    """The plain cache of a run, with compressed ones beside it that are given the same keys, values and queries.

    At every forward after a shadow's first compression the window's newest chunk attends to both, in every layer.
    `errors`: per shadow and layer the squared error of the outputs of all of them, and their squared size.
    """

    def __init__(self, geometry: KVGeometry, shadows: Mapping[str, CompressedKVCache]) -> None:
        super().__init__(geometry)
        self.shadows = dict(shadows)
        self.errors = {name: torch.zeros(geometry.layers, 2, dtype=torch.float64) for name in shadows}
        self._newest = 0

    def reset(self, schedule: Schedule) -> None:
        super().reset(schedule)
        if schedule.noise2clean_kvrange:
            raise ValueError("attention is compared with that to the whole history: set noise2clean_kvrange to []")
        for shadow in self.shadows.values():
            shadow.reset(schedule)

    def enter(self, chunk: int) -> None:
        super().enter(chunk)
        self._newest = max(self._newest, chunk)
        for shadow in self.shadows.values():
            if chunk not in shadow.ledger.whole:
                shadow.enter(chunk)

    def write(self, layer: int, chunk: int, kv: Tensor) -> None:
        super().write(layer, chunk, kv)
        for shadow in self.shadows.values():
            shadow.write(layer, chunk, kv)

    def keep_queries(self, layer: int, q: Tensor) -> None:
        """Compares; the keys of this forward are written by now."""
        truth = attend(q[None], self.view(layer, self._newest, 0)[None]).double()
        for name, shadow in self.shadows.items():
            shadow.keep_queries(layer, q)
            if shadow.ledger.kept:
                found = attend(q[None], shadow.view(layer, self._newest, 0)[None]).double()
                self.errors[name][layer, 0] += (found - truth).square().sum()
                self.errors[name][layer, 1] += truth.square().sum()

    def compacts_after(self, step: Step) -> bool:
        return any(shadow.compacts_after(step) for shadow in self.shadows.values())

    def end_step(self, step: Step) -> None:
        for shadow in self.shadows.values():
            shadow.end_step(step)

    def relative_errors(self) -> dict[str, list[float]]:
        """Per shadow, for every layer: size of the error over the size of the output (L2)."""
        return {name: (sums[:, 0] / sums[:, 1]).sqrt().tolist() for name, sums in self.errors.items()}
