"""Whether the models that a configuration names are there, told from their files alone, for `cmasd plan`.

Says what loading them would say (`cmasd.checkpoints.by_name`, which needs torch; a test holds the two together), and is
silent where only loading can tell. A name of the hub is looked up in the hub's cache, never fetched.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmasd.config.tree import Config

PAIRS = Path(__file__).resolve().parents[1] / "pairs"
PARALLEL = "cmasd-parallel"
"""`model_type` of a parallel drafter."""
ROUTER = "cmasd-router"
"""Of a router of policy `stitch`."""
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("source.spm", "vocab.json", "vocab.txt"),
)


@dataclass(frozen=True)
class Found:
    """A model by its name."""

    name: str
    folder: Path | None
    """Null where it is not there, or not yet."""
    config: dict[str, Any]
    """Of `config.json`; empty where that is not to be had."""
    problem: str | None = None
    """Why it cannot be loaded."""

    @property
    def is_parallel(self) -> bool:
        """Whether it drafts in one pass."""
        return self.config.get("model_type") == PARALLEL

    @property
    def weight_bytes(self) -> int:
        """As stored."""
        files = self.folder.glob("*.safetensors") if self.folder else ()
        return sum(file.stat().st_size for file in files)

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file beside the weights; empty where there is none."""
        return _json(self.folder / name) if self.folder else {}


def find(name: str, allow_pickle: bool = False) -> Found:
    """Look for a model."""
    if not name.strip():
        return Found(name, None, {}, f"models: a name is empty, got {name!r}; expected a model. {_advice()}")
    folder = _folder(name)
    if folder is None:
        path = Path(name).expanduser()
        if path.exists():
            problem = f"{name}: is a file; expected a model folder. Name the folder that holds config.json."
            return Found(name, None, {}, problem)
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:
            return Found(name, None, {}, f"{name}: no such model folder. {_advice()}")
        return _cached(name)
    if not (folder / "config.json").is_file():
        problem = f"{name}: no config.json in the folder; expected a model in Hugging Face format. {_advice()}"
        return Found(name, folder, {}, problem)
    config = _json(folder / "config.json")
    return Found(name, folder, config, _weights_problem(name, folder, config, allow_pickle))


def model_problems(config: Config, verifier: Found, drafter: Found | None) -> list[str]:
    """What keeps the two from being loaded as verifier and drafter."""
    problems = [found.problem for found in (verifier, drafter) if found and found.problem]
    if not verifier.problem and verifier.folder and not _has_tokenizer(verifier.folder):
        problems.append(
            f"{verifier.name}: no tokenizer next to the model; expected one of {', '.join(TOKENIZER_FILES)}. "
            "Save the tokenizer into the model's folder with save_pretrained."
        )
    if drafter is None:
        return problems
    if config.drafter.model == "parallel":
        # Whatever else is wrong with it as a model: it is none that drafts in one pass.
        others = [problem for problem in problems if problem != drafter.problem]
        return [*others, *_parallel_problems(config, verifier, drafter)]
    if drafter.is_parallel:
        problems.append(f"models.drafter: {drafter.name} drafts in one pass. Set drafter.kind=parallel.")
    return problems


def _parallel_problems(config: Config, verifier: Found, drafter: Found) -> list[str]:
    name, asked = drafter.name, config.drafter.max_draft_tokens
    if not drafter.is_parallel:
        bundled = _bundled_parallel(verifier)
        advice = f"Set models.drafter={bundled}, which is bundled" if bundled else "Train one with cmasd train"
        return [
            f"models.drafter: {name} is not a folder with a parallel drafter, which drafter.kind 'parallel' needs. "
            f"{advice}, or set drafter.kind=model."
        ]
    problems = [drafter.problem] if drafter.problem else []
    width, theirs = drafter.config.get("width"), _width(verifier.config)
    if theirs is not None and width != theirs:
        problems.append(
            f"models.drafter: {name} was trained for another verifier: its width is {width}, the verifier's {theirs}. "
            "A parallel drafter reads the verifier's states, so train one for this verifier."
        )
    if not config.drafter.free and asked > drafter.config.get("queries", asked):
        problems.append(
            f"drafter.max_draft_tokens: must be at most {drafter.config['queries']}, which {name} was trained for, "
            f"got {asked}."
        )
    if config.score == "head" and drafter.config.get("has_confidence") is False:
        problems.append(f"confidence.kind: {name} has no confidence head, got {config.confidence.kind}. Use max_prob.")
    return problems


def _bundled_parallel(verifier: Found) -> str | None:
    """The parallel drafter that comes with the package for this verifier."""
    bundled = verifier.folder and verifier.folder.is_relative_to(PAIRS) and verifier.folder.with_name("parallel")
    return bundled.relative_to(PAIRS).as_posix() if bundled and (bundled / "config.json").is_file() else None


def _width(config: dict[str, Any]) -> int | None:
    return next((config[key] for key in ("d_model", "hidden_size", "n_embd") if isinstance(config.get(key), int)), None)


def _folder(name: str) -> Path | None:
    if name in bundled_names():
        return PAIRS / name
    path = Path(name).expanduser()
    return path if path.is_dir() else None


def bundled_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.relative_to(PAIRS).as_posix() for path in PAIRS.glob("**/config.json"))


def _cached(name: str) -> Found:
    """A model of the hub, as far as it was fetched before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return Found(name, None, {}, f"{name}: is neither a folder nor a name of the hub. {_advice()}")
    if not isinstance(found, str):
        return Found(name, None, {})
    return Found(name, Path(found).parent, _json(Path(found)))


def _weights_problem(name: str, folder: Path, config: dict[str, Any], allow_pickle: bool) -> str | None:
    if not config:
        return f"{name}: config.json cannot be read; expected a JSON object. Copy the folder again."
    if any(folder.glob("*.safetensors")):
        return None
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if not pickles:
        return f"{name}: no weights in the folder; expected model.safetensors. {_advice()}"
    if allow_pickle:
        return None
    return (
        f"{name}: weights are in pickle format, got {pickles[0]}; expected model.safetensors. "
        "Convert it with save_pretrained, or, where you trust its author, set models.allow_pickle=true."
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _advice() -> str:
    return f"Give an existing folder, a hub name, or a bundled model ({', '.join(bundled_names()) or 'none'})."
