"""Which prompt rules which chunk of a video (docs/long_video.md, "Prompts over time").

A chunk keeps the caption that it entered with. Chunks count from the first one that is made; given ones have no prompt.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from inference.session.times import PromptChange
from inference.text.cache import CaptionFeatures
from inference.text.captions import ChunkCaptions


class PromptTrack:
    """The captions of a video's chunks; a ``CaptionSource`` of guidance.

    Args:
        prompt: rules from the first chunk on.
        later: changes, in any order; of two at one chunk the last counts.
        encode: features of a prompt, called once for each.
        assemble: captions on the device from features.
        offset: given chunks.

    ``ruled``: the changes that have taken effect, the first prompt among them.
    """

    def __init__(
        self,
        prompt: str,
        later: tuple[PromptChange, ...],
        encode: Callable[[str], CaptionFeatures],
        assemble: Callable[[CaptionFeatures], ChunkCaptions],
        offset: int,
    ) -> None:
        self._encode = encode
        self._assemble = assemble
        self._offset = offset
        self._planned = {0: prompt} | {change.chunk: change.prompt for change in later}
        self._features: dict[str, CaptionFeatures] = {}
        self._captions: dict[str, ChunkCaptions] = {}  # of the prompts of chunks under way
        self._prompts: dict[int, str] = {}  # by chunk, given ones counted, of those under way
        self.ruled: list[PromptChange] = []

    def encode_all(self) -> None:
        """Encode every prompt that is known, ahead."""
        for prompt in self._planned.values():
            self._features_of(prompt)

    def plan(self, state: Mapping[str, Any]) -> None:
        """The prompts of ``state``, for ``encode_all`` before ``restore``: none of them need be those given first."""
        self._planned = dict(state["planned"])

    def add(self, change: PromptChange, features: CaptionFeatures) -> None:
        """Another change, of a chunk that has not entered yet; changes planned after it stand."""
        self._features[change.prompt] = features
        self._planned[change.chunk] = change.prompt

    def rule(self, number: int) -> str:
        """The prompt of chunk ``number``, as planned now."""
        return self._planned[max(chunk for chunk in self._planned if chunk <= number)]

    def enter(self, chunk: int) -> None:
        """``chunk``, given ones counted, begins: its prompt is settled."""
        number = chunk - self._offset
        prompt = self.rule(number)
        self._prompts[chunk] = prompt
        if prompt not in self._captions:
            self._captions[prompt] = self._assemble(self._features_of(prompt))
        if not self.ruled or self.ruled[-1].prompt != prompt:
            self.ruled.append(PromptChange(number, prompt))
        # What was planned for earlier chunks is not asked for any more.
        self._planned = {number: prompt} | {at: later for at, later in self._planned.items() if at > number}

    def leave_before(self, chunk: int) -> None:
        """Chunks before ``chunk``, given ones counted, are clean: captions that rule no other are let go."""
        self._prompts = {number: prompt for number, prompt in self._prompts.items() if number >= chunk}
        needed = {*self._prompts.values(), *self._planned.values()}
        self._captions = {prompt: found for prompt, found in self._captions.items() if prompt in needed}
        self._features = {prompt: found for prompt, found in self._features.items() if prompt in needed}

    def packed_cond(self, chunk: int) -> Tensor:
        return self._captions[self._prompts[chunk]].packed_cond(chunk)

    def packed_null(self) -> Tensor:
        if not self._captions:
            # Given chunks are encoded before the first one enters; what rules then does not matter.
            prompt = self._planned[min(self._planned)]
            self._captions[prompt] = self._assemble(self._features_of(prompt))
        return next(iter(self._captions.values())).packed_null()

    def state(self) -> dict[str, Any]:
        return {
            "planned": dict(self._planned),
            "prompts": dict(self._prompts),
            "ruled": [(change.chunk, change.prompt) for change in self.ruled],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._planned, self._prompts = dict(state["planned"]), dict(state["prompts"])
        self.ruled = [PromptChange(*change) for change in state["ruled"]]
        self._captions = {}
        for prompt in dict.fromkeys(self._prompts.values()):
            self._captions[prompt] = self._assemble(self._features_of(prompt))

    def _features_of(self, prompt: str) -> CaptionFeatures:
        if prompt not in self._features:
            self._features[prompt] = self._encode(prompt)
        return self._features[prompt]
