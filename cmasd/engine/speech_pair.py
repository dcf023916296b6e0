"""What of a pair is different when its verifier hears: codec, rules, and what cannot be asked of it.

The weights are loaded as ever (`pair.py`).
"""

from dataclasses import dataclass, replace
from typing import Any

from cmasd.checkpoints.by_name import Model, Tokenizer, load_feature_extractor, vocabulary_size
from cmasd.codecs.speech import SpeechCodec, Vocabulary
from cmasd.config.tree import Config
from cmasd.engine.hearing import SoundRules
from cmasd.errors import ConfigError, ModelError
from cmasd.generation.constraints import Constraints
from cmasd.generation.settings import decoder_start
from cmasd.io.sound import Listener
from cmasd.models.families import family_of
from cmasd.models.parallel_network import ParallelNetwork

TEXT_FORMATS = ("csv", "text")
"""Of inputs that hold no recordings unless a column of them is named."""


@dataclass(frozen=True)
class Speech:
    """Of one verifier."""

    codec: SpeechCodec
    sound: SoundRules
    vocabulary: Vocabulary

    def constraints(self, constraints: Constraints, model: Model) -> Constraints:
        """With timestamps; what is never said is banned by the output layer, which costs nothing."""
        banned = tuple(sorted({*constraints.banned, *constraints.suppressed}))
        timestamps = self.vocabulary.timestamps(model.generation_config)
        return replace(constraints, banned=banned, suppressed=(), timestamps=timestamps)


def speech_of(config: Config, verifier: Model, tokenizer: Tokenizer) -> Speech | None:
    """None where the verifier reads texts. Raises `ConfigError` and `ModelError`."""
    asked = config.speech.audio_column is not None or config.input.format == "audio"
    if not family_of(verifier).hears:
        if asked:
            key = "speech.audio_column" if config.speech.audio_column else "input.format"
            raise ConfigError(f"{key}: asks for recordings, and {config.models.verifier} reads texts. Use a Whisper.")
        return None
    if config.input.format in TEXT_FORMATS and not asked:
        raise ConfigError(
            f"speech.audio_column: must be set for {config.models.verifier}, which hears, got null and input.format "
            f"{config.input.format}. Name the column of the recordings."
        )
    for key in ("template", "chat", "messages_column"):
        if given := getattr(config.input, key):
            raise ConfigError(f"input.{key}: is of texts, got {given} with a verifier that hears. Leave it out.")
    model: Any = verifier
    start = decoder_start(model.generation_config, model.config, vocabulary_size(model.config))
    vocabulary = Vocabulary.of(model.generation_config, start)
    encoder = model.get_encoder()
    each = encoder.conv1.stride[0] * encoder.conv2.stride[0]
    frames = each * model.config.max_source_positions
    languages = tuple(sorted(vocabulary.languages.values()))
    extractor = load_feature_extractor(config.models.verifier)
    rules = SoundRules(
        start=start,
        most_start=len(vocabulary.first_tokens(None, "transcribe", timestamps=False)),
        languages=languages,
        first_timestamp=vocabulary.no_timestamps + 1,
        frames=frames,
        frames_each=each,
        seconds_each=each * extractor.hop_length / extractor.sampling_rate,
    )
    listen = Listener(config.input.path, config.speech.max_seconds)
    codec = SpeechCodec(extractor, tokenizer, vocabulary, config.speech, frames, listen)
    return Speech(codec, rules, vocabulary)


def check_ears(verifier: Model, drafter: Model | None, parallel: ParallelNetwork | None = None) -> None:
    """Raise `ModelError` for a drafter that hears other features than the verifier, or none."""
    if parallel is not None and parallel.encoder is not None and family_of(verifier).hears:
        raise ModelError("models.drafter: has an encoder of texts, and the verifier hears. Train one without it.")
    hears = [family_of(one).hears for one in (verifier, drafter) if one is not None]
    if len(set(hears)) > 1:
        raise ModelError(
            "models.drafter: one of verifier and drafter hears, the other reads. Choose a pair of Whispers."
        )
    if drafter is None or not hears[0]:
        return
    mine, theirs = ((one.config.num_mel_bins, one.config.max_source_positions) for one in (verifier, drafter))
    if mine != theirs:
        raise ModelError(
            f"models.drafter: hears other features than the verifier, got {theirs[0]} mel bins and {theirs[1]} places; "
            f"expected {mine[0]} and {mine[1]}. Choose a drafter of the verifier's generation."
        )
