"""Ranges that types cannot express, each with the sentence a user reads when it is broken."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from cmasd.config.comparing import COMPARED, COMPARED_WHEN_ASKED
from cmasd.config.corpus import InputConfig
from cmasd.config.speculation import FREE_DRAFTERS, INSIGHTS, MODEL_DRAFTERS
from cmasd.config.tree import Config
from cmasd.errors import ConfigError


class KeyRule(NamedTuple):
    """`key` must satisfy `holds`; `says` completes "must be ..."."""

    key: str
    holds: Callable[[Any], bool]
    says: str


DRAFTERS = (*MODEL_DRAFTERS, *FREE_DRAFTERS, "lookup")
MOST_NODES = 64
"""Of a tree: more are not worth verifying anywhere."""
MOST_TAUGHT = 64
"""Of `telemetry.teacher_top_k`: 8 bytes each, for every output token."""


def _at_least(low: float) -> Callable[[Any], bool]:
    return lambda value: value is None or value >= low


def _share(value: float) -> bool:
    return 0.0 <= value <= 1.0


def _are_drafters(value: object) -> bool:
    listed = value if isinstance(value, list) else [value]
    models = sum(one in MODEL_DRAFTERS for one in listed)
    are_known = bool(listed) and all(one in DRAFTERS for one in listed)
    return are_known and models < 2 and ("recycle" not in listed or models == 1)


def _is_pattern(text: str) -> bool:
    try:
        return bool(re.compile(text))
    except re.error:
        return False


def _are_shares(values: list[float]) -> bool:
    return all(map(_share, values))


def _are_compared(names: list[str]) -> bool:
    return bool(names) and set(names) <= {*COMPARED, *COMPARED_WHEN_ASKED}


RULES = (
    KeyRule("input.sample", lambda v: 0.0 < v <= 1.0, "greater than 0 and at most 1"),
    KeyRule("input.max_text_bytes", _at_least(1), "at least 1"),
    KeyRule("speech.max_seconds", lambda v: v > 0, "greater than 0 seconds"),
    KeyRule(
        "drafter.kind",
        _are_drafters,
        f"one of {', '.join(DRAFTERS)}, or a list with at most one of the first four, and with one if recycle is in it",
    ),
    KeyRule("drafter.memory_tokens", _at_least(1), "at least 1"),
    KeyRule("drafter.max_draft_tokens", _at_least(1), "at least 1"),
    KeyRule("drafter.min_draft_tokens", _at_least(1), "at least 1"),
    KeyRule("drafter.tree_nodes", lambda v: v == 0 or 2 <= v <= MOST_NODES, f"between 2 and {MOST_NODES}, or 0"),
    KeyRule("drafter.tree_branching", lambda v: 1 <= v <= MOST_NODES, f"between 1 and {MOST_NODES}"),
    KeyRule("drafter.shortlist", _at_least(2), "at least 2, or null"),
    KeyRule("drafter.self_layers", _at_least(1), "at least 1, or null"),
    KeyRule("drafter.max_ngram", _at_least(1), "at least 1"),
    KeyRule("policy.alpha", lambda v: v > 0, "greater than 0"),
    KeyRule("policy.threshold", _share, "between 0 and 1"),
    KeyRule("policy.explore_share", _share, "between 0 and 1"),
    KeyRule("stitch.tau", _share, "between 0 and 1"),
    KeyRule("stitch.tau_large", lambda v: v is None or _share(v), "null, or between 0 and 1"),
    KeyRule("stitch.random", lambda v: len(v) in (0, 2) and _are_shares(v), "empty, or two shares between 0 and 1"),
    KeyRule("stitch.max_wait", _at_least(0), "at least 0"),
    KeyRule("verification.beta", _at_least(1), "at least 1"),
    KeyRule("verification.tau", _at_least(0), "at least 0 nats"),
    KeyRule("verification.budget_nats_per_token", lambda v: v > 0, "greater than 0 nats"),
    KeyRule("verification.tau_base", _at_least(0), "at least 0 nats"),
    KeyRule("verification.gamma", _at_least(0), "at least 0 nats"),
    KeyRule("verification.temperature", lambda v: v > 0, "greater than 0"),
    KeyRule("verification.epsilon", _share, "between 0 and 1"),
    KeyRule("verification.delta", _share, "between 0 and 1"),
    KeyRule(
        "confidence.weights",
        lambda v: len(v) == 3 and min(v) >= 0 and abs(sum(v) - 1) < 1e-6,
        "three numbers >= 0 that add up to 1",
    ),
    KeyRule("engine.slots", _at_least(1), "at least 1, or null"),
    KeyRule("engine.max_new_tokens", _at_least(1), "at least 1, or null"),
    KeyRule("engine.max_source_tokens", _at_least(1), "at least 1, or null"),
    KeyRule("engine.cache_tokens", _at_least(1), "at least 1, or null"),
    KeyRule("telemetry.teacher_top_k", lambda value: 0 <= value <= MOST_TAUGHT, f"between 0 and {MOST_TAUGHT}"),
    KeyRule("actors.count", _at_least(1), "at least 1, or null"),
    KeyRule("actors.min", _at_least(1), "at least 1"),
    KeyRule("actors.cpus_each", lambda v: v > 0, "greater than 0"),
    KeyRule("actors.gpus_each", _at_least(0), "at least 0, or null"),
    KeyRule("actors.shards_in_flight", _at_least(1), "at least 1, or null"),
    KeyRule("output.rows_per_shard", _at_least(1), "at least 1, or null"),
    KeyRule("limits.max_failed_fraction", _share, "between 0 and 1"),
    KeyRule("limits.max_actor_restarts", _at_least(1), "at least 1"),
    KeyRule("notify.timeout_seconds", lambda v: v > 0, "greater than 0 seconds"),
    KeyRule("limits.drain_seconds", _at_least(0), "at least 0"),
    KeyRule("baseline.rows", _at_least(0), "at least 0"),
    KeyRule("baseline.batch_sizes", lambda v: all(one >= 1 for one in v), "numbers of at least 1"),
    KeyRule("cost.accelerator_per_hour", _at_least(0), "at least 0, or null"),
    KeyRule("compare.engines", _are_compared, f"some of {', '.join((*COMPARED, *COMPARED_WHEN_ASKED))}"),
    KeyRule("compare.max_relative_ci", lambda v: v > 0, "greater than 0"),
    KeyRule("compare.max_seconds", lambda v: v > 0, "greater than 0"),
    KeyRule("compare.min_rows", _at_least(0), "at least 0"),
    KeyRule("compare.taus", lambda v: bool(v) and _are_shares(v), "one number between 0 and 1, or more"),
    KeyRule("compare.answer_pattern", _is_pattern, "a regular expression"),
    KeyRule("compare.quality_budget_nats_per_token", lambda v: v > 0, "greater than 0 nats"),
)


_SECRET = re.compile(
    r"(?P<keep>://)[^/@:?]*:(?!\d+(/|$))[^@]+(?=@)"
    r"|(?P<name>[?&](x-amz-[\w-]+|signature|sig|awsaccesskeyid|(access_)?token|secret|password|key)=)[^&]*",
    re.IGNORECASE,
)
"""Credentials before the host of an address, or in its query."""


_NAMES = ("models.verifier", "models.drafter", "drafter.previous", "drafter.memory")
_NO_ADDRESS = re.compile(r"(?P<scheme>s3a?|gs|gcs|az|abfss?|hdfs|https?):(?!//[^/])", re.IGNORECASE)
"""Begins like an address, and would be taken for a folder of that name."""


def value_of(config: object, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def check(config: Config) -> None:
    """Raise `ConfigError` for the first broken rule."""
    for rule in RULES:
        value = value_of(config, rule.key)
        if not rule.holds(value):
            raise ConfigError(f"{rule.key}: must be {rule.says}, got {value}.")
    _check_addresses(config)
    _check_together(config)


def _check_addresses(config: Config) -> None:
    """What is in a configuration is kept in the manifest and shown in messages: no place for a secret."""
    for key in ("input.path", "output.path", "confidence.calibration", "stitch.router", *_NAMES):
        value = str(value_of(config, key))
        if broken := _NO_ADDRESS.match(value):
            raise ConfigError(f"{key}: is no whole address, got {value}; expected {broken['scheme']}://BUCKET/PATH.")
        if _SECRET.search(value):
            shown = _SECRET.sub(lambda found: f"{found['keep'] or found['name']}***", value)
            raise ConfigError(
                f"{key}: must not hold credentials, got {shown}. Give them by AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, by AWS_PROFILE, or by a role."
            )


def _check_together(config: Config) -> None:
    if config.drafter.min_draft_tokens > config.drafter.max_draft_tokens:
        raise ConfigError(
            f"drafter.min_draft_tokens: must be at most drafter.max_draft_tokens ({config.drafter.max_draft_tokens}), "
            f"got {config.drafter.min_draft_tokens}."
        )
    if config.actors.count is None and config.actors.min > config.actors.max:
        raise ConfigError(f"actors.min: must be at most actors.max ({config.actors.max}), got {config.actors.min}.")
    if config.actors.local is True and (config.actors.count or config.actors.max) > 1:
        most = config.actors.count or config.actors.max
        raise ConfigError(f"actors.local: one process decodes, got {most} actors. Set actors.local=false, or leave it.")
    if config.confidence.kind == "head" and config.drafter.model != "parallel":
        raise ConfigError(
            f"confidence.kind: head is of drafter.kind parallel alone, got drafter.kind {config.drafter.name}. "
            "Use confidence.kind=auto."
        )
    if config.confidence.kind in INSIGHTS and config.drafter.model in (None, "parallel"):
        raise ConfigError(
            f"confidence.kind: {config.confidence.kind} is of a model that drafts token by token (drafter.kind model, "
            f"self or quantised), got drafter.kind {config.drafter.name}. Use confidence.kind=auto."
        )
    if config.engine.fixed_shapes and config.lossless != "exact":
        raise ConfigError(
            "engine.fixed_shapes: what is accepted otherwise than exactly depends on what was drafted and drawn, got "
            f"verification.kind {config.verification.kind} and policy.kind {config.policy.kind}; expected exact output."
            " Use verification.kind=exact, or engine.fixed_shapes=false."
        )
    _check_drafter_dtype(config)
    if config.drafter.model == "quantised" and config.models.dtype not in ("auto", "float32"):
        raise ConfigError(
            "drafter.kind: quantised rounds a float32 verifier's weights to draft with, got models.dtype "
            f"{config.models.dtype}. Use models.dtype=auto."
        )
    _check_previous(config)
    _check_stitch(config)
    if config.compare.answer == "regex" and not config.compare.answer_pattern:
        raise ConfigError("compare.answer_pattern: must be set for compare.answer regex, got ''.")
    needs_drafter = config.policy.kind != "plain" and config.drafter.is_named
    if needs_drafter and config.models.drafter is None:
        raise ConfigError(
            f"models.drafter: must be set for drafter.kind '{config.drafter.model}', got null. "
            "Name a model, or set drafter.kind=copy."
        )
    if config.notify.webhook is not None and not config.notify.webhook.startswith(("http://", "https://")):
        raise ConfigError("notify.webhook: must begin with https:// or http://. (The value may be secret: not shown.)")
    _check_input(config.input)
    if config.speech.audio_column is not None and config.input.messages_column is not None:
        raise ConfigError(
            f"speech.audio_column: rows are recordings or conversations, got {config.speech.audio_column} with "
            f"messages in {config.input.messages_column}. Leave one out."
        )


def _check_input(given: InputConfig) -> None:
    if given.template is not None and "{text}" not in given.template:
        raise ConfigError(f"input.template: must contain {{text}}, got {given.template!r}.")
    if given.template is not None and given.messages_column is not None:
        raise ConfigError(
            f"input.template: is for texts, got {given.template!r} with messages in {given.messages_column}. "
            "Write what all rows share as input.system."
        )
    if given.system is not None and not given.chat and given.messages_column is None:
        raise ConfigError(
            f"input.system: is of conversations, got {given.system!r} with texts. Set input.chat=true, or write it in "
            "input.template."
        )


def _check_previous(config: Config) -> None:
    run, drafts = config.drafter.previous, "previous" in config.drafter.kinds
    if drafts and config.policy.kind != "plain" and not run:
        raise ConfigError("drafter.previous: must be set for drafter.kind previous, got null. Name a run folder.")
    if run and not drafts:
        raise ConfigError(
            f"drafter.previous: is of drafter.kind previous, got {run} with drafter.kind {config.drafter.name}. "
            "Add previous to drafter.kind."
        )
    if run and run.rstrip("/") == config.output.path.rstrip("/"):
        raise ConfigError(f"drafter.previous: is output.path itself, got {run}; expected another run. Change one.")
    memory = config.drafter.memory
    if memory and "memory" not in config.drafter.kinds:
        raise ConfigError(
            f"drafter.memory: is of drafter.kind memory, got {memory} with drafter.kind {config.drafter.name}. "
            "Add memory to drafter.kind."
        )


def _check_stitch(config: Config) -> None:
    """Both models must be able to say any token at any place, by themselves."""
    if config.policy.kind != "stitch":
        return
    drafter, said = config.drafter, "with policy.kind stitch"
    if drafter.free or drafter.model == "parallel":
        raise ConfigError(
            f"drafter.kind: must be a model that speaks token by token {said}, got {drafter.name}; expected model, "
            "self or quantised. Set drafter.kind=model."
        )
    if config.stitch.router is not None:
        _check_router(config, config.stitch.router)
    if drafter.shortlist is not None:
        raise ConfigError(
            f"drafter.shortlist: must be null {said}, got {drafter.shortlist}; the small model says whole rows."
        )
    if config.verification.kind not in ("exact", "sampling"):
        raise ConfigError(
            f"verification.kind: must be exact (greedy) or sampling {said}, got {config.verification.kind}."
        )
    if config.telemetry.teacher_top_k:
        raise ConfigError(
            f"telemetry.teacher_top_k: must be 0 {said}, got {config.telemetry.teacher_top_k}; the verifier does not "
            "judge every token."
        )


def _check_router(config: Config, router: str) -> None:
    if config.stitch.random:
        raise ConfigError(
            f"stitch.router: decides alone, got {router} with stitch.random {config.stitch.random}. Leave one out."
        )
    if config.confidence.margin_form != "full":
        raise ConfigError(
            f"confidence.margin_form: must be full with stitch.router, got {config.confidence.margin_form}; the router "
            "was trained with it. Leave it out."
        )


def _check_drafter_dtype(config: Config) -> None:
    models, kind, dtype = config.models, config.drafter.name, config.models.drafter_dtype
    if dtype in ("auto", "same") or models.dtype == dtype:
        return
    if models.dtype not in ("auto", "float32", "int8"):
        raise ConfigError(
            f"models.drafter_dtype: {dtype} goes with models.dtype auto, float32 or int8, got {models.dtype}. "
            "Use models.drafter_dtype=same."
        )
    if not config.drafter.is_named:
        raise ConfigError(
            f"models.drafter_dtype: is of drafter.kind model and parallel, got {dtype} with drafter.kind {kind}. "
            "Use models.drafter_dtype=auto."
        )
