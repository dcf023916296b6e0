"""A real Whisper on real speech, where both are at hand: `CMASD_WHISPER` names a checkpoint's folder, `CMASD_SPEECH` a
Parquet file with the columns `audio` (Hugging Face's) and `text`.
"""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from cmasd import Decoder
from cmasd.checkpoints.by_name import load_feature_extractor, load_model
from cmasd.io.sound import RATE, Listener, Samples

MODEL, SPEECH = os.environ.get("CMASD_WHISPER", ""), os.environ.get("CMASD_SPEECH", "")
CLIPS = 3
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (Path(MODEL).is_dir() and Path(SPEECH).is_file()), reason="no real Whisper, or no speech"),
]


@pytest.fixture(scope="module")
def clips() -> list[Samples]:
    listen = Listener("-", 60.0)
    return [listen(one) for one in pq.read_table(SPEECH, columns=["audio"]).slice(0, CLIPS)["audio"].to_pylist()]


@torch.no_grad()
def generated(model: Any, samples: Samples, **asked: Any) -> list[int]:
    """Words and timestamps of `generate`."""
    extractor = load_feature_extractor(MODEL)
    how = {"truncation": False, "padding": "longest"} if len(samples) > extractor.n_samples else {}
    made = extractor(samples, sampling_rate=RATE, return_tensors="pt", **how)
    ids = model.generate(made.input_features, task="transcribe", return_segments=True, **asked)
    return [token for segment in ids["segments"][0] for token in segment["tokens"].tolist()]


def said(decoder: Decoder, samples: Samples) -> tuple[list[int], str]:
    [row] = decoder([samples])
    assert row.result is not None
    assert row.text is not None
    tokens = row.result.token_ids.tolist()
    return tokens[:-1] if row.result.finish_reason == "stop" else tokens, row.text


def test_short_and_long_recordings_equal_generate(clips: list[Samples]) -> None:
    model = load_model(MODEL, "float32", "cpu")
    found_out = Decoder(MODEL, engine={"slots": 1})
    assert said(found_out, clips[0])[0] == generated(model, clips[0])
    english = Decoder(MODEL, engine={"slots": 1}, speech={"language": "en"}, drafter={"kind": "self"})
    for clip in clips[1:]:
        assert said(english, clip)[0] == generated(model, clip, language="en", return_timestamps=False)
    whole = torch.cat([torch.from_numpy(clip) for clip in clips]).numpy()
    assert len(whole) > 30 * RATE
    tokens, text = said(english, whole)
    assert tokens == generated(model, whole, language="en", return_timestamps=True)
    assert len(text) > 400
