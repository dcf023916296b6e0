"""What keeps a run from hearing its recordings, told from files alone, for `cmasd plan`; in the words of the run."""

from cmasd.config.tree import Config
from cmasd.errors import CmasdError
from cmasd.io.sound import Listener
from cmasd.pipeline.models_there import Found

HEARS = "whisper"
"""`model_type` of verifiers that hear."""
TEXT_FORMATS = ("csv", "text")


def speech_problems(config: Config, verifier: Found) -> list[str]:
    """Of a verifier that is there, and of the libraries."""
    asked = config.speech.audio_column is not None or config.input.format == "audio"
    kind = verifier.config.get("model_type")
    if kind is not None and kind != HEARS:
        key = "speech.audio_column" if config.speech.audio_column else "input.format"
        return [f"{key}: asks for recordings, and {verifier.name} reads texts. Use a Whisper."] if asked else []
    if kind is None and not asked:
        return []
    problems = []
    if kind == HEARS and config.input.format in TEXT_FORMATS and not asked:
        problems.append(
            f"speech.audio_column: must be set for {verifier.name}, which hears, got null and input.format "
            f"{config.input.format}. Name the column of the recordings."
        )
    if verifier.folder is not None and not (verifier.folder / "preprocessor_config.json").is_file():
        problems.append(
            f"{verifier.name}: no preprocessor_config.json next to the model, which says how sound becomes features. "
            "Save the feature extractor into the model's folder with save_pretrained."
        )
    try:
        Listener(config.input.path, config.speech.max_seconds)
    except CmasdError as error:
        problems.append(str(error))
    return problems
