"""What a pair derives from its checkpoint: limits, the decoder's start, the device."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cmasd.config import from_dict
from cmasd.config.rules import check
from cmasd.core import Request
from cmasd.engine.capacity import need_of, resolve
from cmasd.engine.pair import _drafted_bits, _shortlist, choose_device, load_pair
from cmasd.errors import ConfigError, ModelError
from cmasd.kernels import Bits, kernels
from tests.unit.engine.pairs import decode, tiny_pair, tokens_of
from tests.unit.runner.tiny import tiny_model


def test_a_verifier_that_drafts_for_itself_needs_no_drafter() -> None:
    """The shortlist belongs to the drafter that is not there; memory is counted for both."""
    keys = {"kind": "self", "self_layers": 2, "shortlist": 3000}
    config = from_dict({"models": {"drafter": None}, "drafter": keys, "engine": {"slots": 2}})
    pair: Any = load_pair(config)
    assert len(pair.drafter.get_decoder().layers) == 2
    assert pair.shortlist is None
    alone = load_pair(from_dict({"policy": {"kind": "plain"}}))
    assert need_of(pair, config).slot_bytes > need_of(alone, config).slot_bytes
    assert resolve(pair, config) == config


@pytest.mark.parametrize("stranger", [64, -1])
def test_a_shortlist_of_tokens_that_the_verifier_lacks(stranger: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny_pair("marian")
    config = from_dict({"models": {"drafter": "d"}, "drafter": {"shortlist": 3}})
    monkeypatch.setattr("cmasd.engine.pair.load_shortlist", lambda name: [5, 9, 7, stranger])
    with pytest.raises(
        ModelError, match=rf"drafter\.shortlist: d lists a token .* got {stranger}; expected ids from 0 to 63"
    ):
        _shortlist(config, pair.verifier, pair.constraints)
    monkeypatch.setattr("cmasd.engine.pair.load_shortlist", lambda name: [5, 9, 7, 63])
    assert _shortlist(config, pair.verifier, pair.constraints) == (1, 5, 7, 9)


def test_notices_are_those_of_the_checkpoint() -> None:
    pair = tiny_pair("marian")
    assert pair.notices == ()
    assert replace(pair, constraints=replace(pair.constraints, notices=("beams",))).notices == ("beams",)


def test_the_device_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"models\.device: is cuda, but torch finds no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")


PARALLEL = {"models": {"drafter": "en-de/parallel"}, "drafter": {"kind": "parallel"}}


@pytest.mark.parametrize(
    ("sections", "multiplies_bytes", "expected"),
    [
        ({}, True, (None, 8)),
        ({}, False, (None, None)),
        (PARALLEL, True, (None, 8)),
        (PARALLEL, False, (None, None)),
        ({"models": {"drafter_dtype": "same"}}, True, (None, None)),
        ({"models": {"drafter_dtype": "int8"}}, False, (None, 8)),
        ({"models": {"dtype": "int8", "drafter_dtype": "same"}}, True, (8, 8)),
        ({"models": {"drafter_dtype": "int4"}}, False, (None, 4)),
        ({"models": {"dtype": "int8", "drafter_dtype": "int4"}}, True, (8, 4)),
        ({"models": {"drafter_dtype": "int4"}, "policy": {"kind": "stitch"}}, True, (None, 4)),
        ({**PARALLEL, "models": {"drafter": "en-de/parallel", "drafter_dtype": "int4"}}, True, (None, 4)),
        ({"models": {"dtype": "bfloat16"}}, True, (None, None)),
        ({"drafter": {"kind": "self"}}, True, (None, None)),
        ({"drafter": {"kind": "self"}, "models": {"dtype": "int8"}}, True, (8, 8)),
    ],
)
def test_a_drafter_is_rounded_where_that_makes_it_faster(
    sections: dict[str, dict[str, Any]],
    multiplies_bytes: bool,
    expected: tuple[Bits, Bits],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cmasd.engine.pair.kernels", lambda dtype: SimpleNamespace(multiplies_bytes=multiplies_bytes))
    cpu = {**sections, "models": {"device": "cpu", **sections.get("models", {})}}
    pair = load_pair(from_dict(cpu))
    assert (pair.bits, pair.drafter_bits) == expected


@pytest.mark.parametrize("family", ["bart", "t5", "llama", "gpt2"])
def test_a_drafter_of_any_family_is_rounded(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmasd.engine.pair.kernels", lambda dtype: SimpleNamespace(multiplies_bytes=True))
    assert _drafted_bits(from_dict({}), tiny_model(family, layers=1)) == 8


@pytest.mark.parametrize("bits", [8, 4])
def test_a_verifier_that_is_rounded_to_draft_is_loaded_once(bits: Bits) -> None:
    drafter = {"kind": "quantised", "bits": bits, "shortlist": 3000}
    config = from_dict({"drafter": drafter, "models": {"device": "cpu"}})
    pair = load_pair(config)
    assert pair.drafter is pair.verifier
    assert (pair.bits, pair.drafter_bits, pair.shortlist) == (None, bits, None)
    with pytest.raises(ConfigError, match=r"drafter\.kind: quantised rounds a float32 .* got models\.dtype int8"):
        check(from_dict({"drafter": {"kind": "quantised"}, "models": {"dtype": "int8"}}))


@pytest.mark.skipif(kernels(torch.float32) is None, reason="no kernels here, so nothing is rounded")
@pytest.mark.parametrize("sections", [{}, PARALLEL], ids=["model", "parallel"])
def test_a_rounded_drafter_of_a_float32_verifier_stays_exact(sections: dict[str, dict[str, Any]]) -> None:
    """The bundled pair on real text: rounding changes confidences and a few drafts, and no output."""
    lines = Path("configs/demo/sentences.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    texts, runs = [json.loads(line)["text"] for line in lines], {}
    for precision in ("same", "int8", "int4"):
        models = {"device": "cpu", **sections.get("models", {}), "drafter_dtype": precision}
        drafter = {**sections.get("drafter", {}), "max_draft_tokens": 4}
        common: dict[str, Any] = {"models": models, "drafter": drafter, "engine": {"slots": 7, "max_new_tokens": 40}}
        config = from_dict({**common, "policy": {"kind": "fixed"}})
        pair = load_pair(config)
        sources = [source for source in pair.codec.encode(texts) if isinstance(source, list)]
        requests = [Request(key, source, 40) for key, source in enumerate(sources)]
        assert len(requests) == 40
        runs[precision] = decode(pair, config, requests)
        plain = decode(pair, from_dict({**common, "policy": {"kind": "plain"}}), requests)
        assert tokens_of(runs[precision]) == tokens_of(plain)
    confidences = [[result.mean_confidence for result in run.values()] for run in runs.values()]
    assert confidences[0] != confidences[1]
    accepted = [sum(result.num_accepted_tokens for result in run.values()) for run in runs.values()]
    assert accepted[1] > 0.9 * accepted[0]
