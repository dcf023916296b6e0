"""`model.generate` of transformers on the same requests.

On a CPU it decodes in float32 with the stock model, whatever precision our own engines are measured at; on a GPU in
the pair's own precision.
"""

from typing import Any

import torch

from cmasd.checkpoints.by_name import Model, load_model
from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.engine.capacity import host_free_bytes
from cmasd.errors import ModelError
from cmasd.evaluation.speed.peers.heard import generate_heard
from cmasd.models.packed import is_packed

WHOLE = 4
"""Bytes of a weight in float32."""


def stock_verifier(pair: Pair, config: Config) -> Model:
    """The verifier as transformers runs it; loaded again only where the pair's is packed, or of less than float32 on a
    CPU. Raises `ModelError` where it does not fit into memory.
    """
    return _stock(pair.verifier, config.models.verifier, config)


def stock_drafter(pair: Pair, config: Config) -> Model:
    """The same of a drafter with a model of its own; raises `ModelError` where the pair has none."""
    if pair.drafter is None or config.models.drafter is None or config.drafter.model != "model":
        raise ModelError("the pair has no drafter with a model of its own")
    return _stock(pair.drafter, config.models.drafter, config)


def _stock(loaded: Model, name: str, config: Config) -> Model:
    is_whole = loaded.dtype in (torch.float32, torch.float64) and not is_packed(loaded)
    if loaded.device.type != "cpu" or is_whole:
        return loaded
    check_room(loaded, WHOLE)
    models = config.models
    trust = {"trust_remote_code": models.trust_remote_code, "allow_pickle": models.allow_pickle}
    return load_model(name, "float32", loaded.device, **trust)


def check_room(model: Model, bytes_each: int) -> None:
    """Whether the model's weights fit into memory once more, at so many bytes each; raises `ModelError`.

    Beside models that are there already: what a peer keeps is its own.
    """
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in type(model)(model.config).parameters())
    needed, free = bytes_each * weights, host_free_bytes()
    if needed > free:
        raise ModelError(f"needs {needed / 2**30:.1f} GiB of memory for its weights, {free / 2**30:.1f} GiB are free")


class HfGenerate:
    """`model.generate`, greedy or by beam search, in static batches sorted by length.

    A batch runs to its largest limit; rows with a smaller one are cut. Under a forced last token all limits must agree.
    """

    def __init__(self, pair: Pair, batch_size: int, model: Model | None = None, beams: int = 1) -> None:
        """`model` is the pair's verifier unless another is given; one beam is greedy."""
        self.pair = pair
        self.batch_size = batch_size
        self.model = pair.verifier if model is None else model
        self.beams = beams

    @torch.inference_mode()
    def decode(self, requests: list[Request]) -> dict[int, list[int]]:
        """Token ids by request key."""
        ordered = sorted(requests, key=lambda request: -len(request.source))
        outputs: dict[int, list[int]] = {}
        for i in range(0, len(ordered), self.batch_size):
            outputs.update(self._batch(ordered[i : i + self.batch_size]))
        return outputs

    def _batch(self, batch: list[Request]) -> dict[int, list[int]]:
        model: Any = self.model
        if self.pair.sound is not None:
            return generate_heard(model, self.pair, self.pair.sound, batch, self.beams)
        pad = model.generation_config.pad_token_id or 0
        longest = max(len(request.source) for request in batch)
        # Decoder-only models continue the last column, so their prompts are padded on the left.
        left = not self.pair.is_encoder_decoder
        ids_BS = torch.full((len(batch), longest), pad)
        mask_BS = torch.zeros_like(ids_BS)
        for i, request in enumerate(batch):
            where = slice(longest - len(request.source), None) if left else slice(len(request.source))
            ids_BS[i, where] = torch.tensor(request.source)
            mask_BS[i, where] = 1
        generated = model.generate(
            input_ids=ids_BS.to(self.pair.device),
            attention_mask=mask_BS.to(self.pair.device),
            do_sample=False,
            num_beams=self.beams,
            max_new_tokens=max(min(r.max_new_tokens, self.pair.room(len(r.source))) for r in batch),
            forced_bos_token_id=self.pair.constraints.forced_bos_token_id,
            **self._more(),
        )
        start = longest if left else 1
        rows = (row[start:] for row in generated.tolist())
        most = [min(r.max_new_tokens, self.pair.room(len(r.source))) for r in batch]
        return {r.key: self._row(row)[:limit] for r, row, limit in zip(batch, rows, most, strict=True)}

    def _more(self) -> dict[str, Any]:
        """What else `generate` is told."""
        return {}

    def _row(self, tokens: list[int]) -> list[int]:
        """Up to the end of sequence, which is kept; the padding behind it is not."""
        ends = [i for i, token in enumerate(tokens) if token in self.pair.constraints.eos_token_ids]
        return tokens[: ends[0] + 1] if ends else tokens


class HfAssisted(HfGenerate):
    """Assisted generation of transformers: a drafter proposes, by its own rules of how many; one row at a time."""

    def __init__(self, pair: Pair, verifier: Model, drafter: Model) -> None:
        """Stock models."""
        super().__init__(pair, 1, verifier)
        self._drafter = drafter

    def _more(self) -> dict[str, Any]:
        return {"assistant_model": self._drafter}
