"""From files and overrides to a configuration: merging, types, names, and what a user reads when one is wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmasd.config import Config, flatten, from_dict, load, to_dict, to_yaml
from cmasd.config.rules import RULES, check, value_of
from cmasd.errors import ConfigError

PATHS = ["input.path=in.jsonl", "output.path=out"]


def written(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def configured(*overrides: str) -> Config:
    return load([], [*PATHS, *overrides])


@pytest.mark.parametrize("bits", [8, 4])
def test_a_number_that_is_one_of_some_may_be_said_as_an_override(bits: int, tmp_path: Path) -> None:
    assert configured(f"drafter.bits={bits}").drafter.bits == bits
    file = written(tmp_path, f"drafter: {{bits: {bits}}}\ninput: {{path: a}}\noutput: {{path: b}}\n")
    assert load([file]).drafter.bits == bits


class TestMerging:
    def test_defaults_then_files_then_overrides(self, tmp_path: Path) -> None:
        first = written(tmp_path, "engine: {slots: 4, max_new_tokens: 9}\npolicy: {kind: fixed}\n", "first.yaml")
        second = written(tmp_path, "engine: {slots: 5}\ninput: {path: a}\noutput: {path: b}\n", "second.yaml")
        config = load([first, second], ["policy.alpha=0.5", "engine.slots=6", "engine.slots=7"])
        assert (config.engine.slots, config.engine.max_new_tokens) == (7, 9)
        assert (config.policy.kind, config.policy.alpha) == ("fixed", 0.5)
        assert config.drafter == Config().drafter

    def test_an_empty_section_changes_nothing(self, tmp_path: Path) -> None:
        assert load([written(tmp_path, "engine:\npolicy: {}\n")], PATHS) == configured()

    def test_values_may_refer_to_each_other(self, tmp_path: Path) -> None:
        file = written(tmp_path, "input: {path: corpus}\noutput: {path: 'runs/${input.path}'}\n")
        assert load([file]).output.path == "runs/corpus"

    def test_a_configuration_is_frozen(self) -> None:
        with pytest.raises(AttributeError):
            configured().engine.slots = 3  # type: ignore[misc]


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "value"),
        [
            ("engine.slots=16", 16),
            ("engine.slots=auto", None),
            ("engine.slots=null", None),
            ("policy.threshold=1e-3", 0.001),
            ("actors.cpus_each=2", 2.0),
            ("input.chat=true", True),
            ("input.id_column=null", None),
            ("models.drafter=", None),
            ("models.drafter=~", None),
            ("input.keep_columns=[en, de]", ["en", "de"]),
            ("input.keep_columns=[]", []),
            ("input.keep_columns=en", ["en"]),
            ("input.keep_columns=a,b", ["a,b"]),
            ("confidence.weights=[0.2,0.3,0.5]", [0.2, 0.3, 0.5]),
            ("input.template=summarize: {text}", "summarize: {text}"),
            ("input.template=a=b {text}", "a=b {text}"),
            ("input.template=[INST] {text} [/INST]", "[INST] {text} [/INST]"),
            ('input.keep_columns=[de, "no"]', ["de", "no"]),
            ("input.path=s3://bucket/a=1/b.parquet", "s3://bucket/a=1/b.parquet"),
            ("input.id_column=12", "12"),
            ("drafter.bits=4", 4),
            ("drafter.kind=memory", "memory"),
            ("drafter.kind=[memory, copy, model]", ["memory", "copy", "model"]),
        ],
    )
    def test_text_becomes_the_keys_type(self, override: str, value: Any) -> None:
        assert value_of(configured("drafter.kind=copy", override), override.partition("=")[0]) == value

    @pytest.mark.parametrize("word", ["no", "off", "yes", "on", "true"])
    def test_a_language_that_yaml_takes_for_a_boolean(self, word: str) -> None:
        assert configured(f"models.source_language={word}").models.source_language == word

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("engine.slots", r"^engine\.slots: is not an override; expected key=value, e\.g\. engine\.slots=16\.$"),
            ("engine.slot=3", r"^engine\.slot: unknown key\. Did you mean engine\.slots\?$"),
            ("polcy.kind=fixed", r"^polcy\.kind: unknown key\. Did you mean policy\.kind\?$"),
            ("slots=3", r"^slots: unknown key\."),
            ("zzz=3", r"^zzz: unknown key\. `configs/reference\.yaml` lists every key\.$"),
            ("engine=3", r"^engine: unknown key\."),
            ("engine.slots=four", r"^engine\.slots: must be a whole number, or null, got four\.$"),
            ("engine.slots=1.5", r"^engine\.slots: must be a whole number, or null, got 1\.5\.$"),
            ("policy.alpha=high", r"^policy\.alpha: must be a number, got high\.$"),
            ("input.chat=perhaps", r"^input\.chat: must be true or false, got perhaps\.$"),
            ("policy.alpha=null", r"^policy\.alpha: must be a number, got null\.$"),
            ("policy.alpha=auto", r"^policy\.alpha: must be a number, got auto\.$"),
            ("policy.kind=greedy", r"^policy\.kind: must be one of goodput, .*stitch, got greedy\.$"),
            ("input.format=null", r"^input\.format: must be one of auto, parquet, jsonl, .*, got null\.$"),
            ("input.text_column=", r"^input\.text_column: must be text, got null\.$"),
            ("input.keep_columns=", r"^input\.keep_columns: must be a list like \[a, b\], got null\.$"),
            (
                "confidence.weights=[a,b,c]",
                r"^confidence\.weights: must be a list like \[0\.5, 0\.5\], got \[a, b, c\]",
            ),
            ("confidence.weights=0.5", r"^confidence\.weights: must be three numbers .*, got \[0\.5\]\.$"),
            ("input.keep_columns=[en", r"^input\.keep_columns: is not valid YAML"),
            ("input.keep_columns=[de, no]", r"^input\.keep_columns: must not be a boolean, got false\. Quote it"),
            ("input.path=runs/${absent.key}", r"^input\.path: .*absent"),
            ("input.path=${", r"^input\.path: "),
        ],
    )
    def test_what_is_wrong_is_named(self, override: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            configured(override)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2


class TestFiles:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("engine: {slot: 3}\n", r"config\.yaml: engine\.slot: unknown key\. Did you mean engine\.slots\?"),
            (
                "models: {source_language: no}\n",
                r"models\.source_language: must not be a boolean, got false\. Quote it",
            ),
            ("input: {keep_columns: [de, no]}\n", r"input\.keep_columns: must not be a boolean, got false"),
            ("input: {path: on}\n", r"input\.path: must not be a boolean, got true"),
            ("engine: {slots: yes}\n", r"engine\.slots: must not be a boolean, got true"),
            ("engine: {slots: lots}\n", r"config\.yaml: engine\.slots: .*lots"),
            ("policy: {kind: greedy}\n", r"config\.yaml: policy\.kind: .*greedy"),
            ("- a\n- b\n", r"config\.yaml: must hold `section:` blocks of `key: value`, got list\."),
            ("engine: {slots: 3\n", r"config\.yaml: is not valid YAML"),
            ("engine: [1, 2]\n", r"config\.yaml: engine: unknown key"),
            ("output: {path: '${absent.key}'}\n", r"config\.yaml: cannot be read"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            load([written(tmp_path, text)], PATHS)
        assert "\n" not in str(caught.value)

    def test_one_column_needs_no_list(self, tmp_path: Path) -> None:
        assert load([written(tmp_path, "input: {keep_columns: en}\n")], PATHS).input.keep_columns == ["en"]

    def test_quoted_text_is_no_boolean(self, tmp_path: Path) -> None:
        file = written(tmp_path, "models: {source_language: 'no'}\n")
        assert load([file], PATHS).models.source_language == "no"

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"absent\.yaml: no such configuration file\. `configs/` has examples\."):
            load([tmp_path / "absent.yaml"], PATHS)

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            load([tmp_path], PATHS)

    def test_an_empty_file(self, tmp_path: Path) -> None:
        assert load([written(tmp_path, "")], PATHS) == configured()


class TestRules:
    @pytest.mark.parametrize("key", ["input.path", "output.path"])
    def test_paths_are_required(self, key: str) -> None:
        others = [path for path in PATHS if not path.startswith(key)]
        with pytest.raises(
            ConfigError, match=rf"^{key}: is not set; expected a path\. Add it .* or pass {key}=PATH\.$"
        ):
            load([], others)

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("drafter.max_draft_tokens=0", "must be at least 1, got 0."),
            ("policy.alpha=0", "must be greater than 0, got 0.0."),
            ("policy.threshold=1.01", "must be between 0 and 1, got 1.01."),
            ("policy.threshold=nan", "must be between 0 and 1, got nan."),
            ("verification.tau=-1", "must be at least 0 nats, got -1.0."),
            ("verification.temperature=0", "must be greater than 0, got 0.0."),
            ("verification.gamma=nan", "must be at least 0 nats, got nan."),
            ("confidence.weights=[0.5,0.5]", "must be three numbers >= 0 that add up to 1, got [0.5, 0.5]."),
            ("confidence.weights=[]", "must be three numbers >= 0 that add up to 1, got []."),
            ("confidence.weights=[0.5,0.6,-0.1]", "must be three numbers >= 0 that add up to 1"),
            ("confidence.weights=[0.5,0.6,0.1]", "must be three numbers >= 0 that add up to 1"),
            ("engine.max_new_tokens=0", "must be at least 1, or null, got 0."),
            ("limits.max_failed_fraction=2", "must be between 0 and 1, got 2.0."),
            (
                "drafter.kind=nobody",
                "must be one of model, parallel, self, quantised, previous, memory, copy, recycle, lookup, or a list",
            ),
            ("drafter.kind=null", "must be one of"),
            ("drafter.kind=[]", "must be one of"),
            ("drafter.kind=[copy, nobody]", "must be one of"),
            ("drafter.kind=[model, self]", "must be one of"),
            ("drafter.memory_tokens=0", "must be at least 1, got 0."),
            ("actors.gpus_each=-1", "must be at least 0, or null, got -1.0."),
        ],
    )
    def test_a_value_out_of_range(self, override: str, says: str) -> None:
        key = override.partition("=")[0]
        with pytest.raises(ConfigError) as caught:
            configured(override)
        assert str(caught.value).startswith(f"{key}: {says}")

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (
                ["drafter.min_draft_tokens=6"],
                r"^drafter\.min_draft_tokens: must be at most .*max_draft_tokens \(5\), got 6",
            ),
            (["actors.min=3", "actors.max=2"], r"^actors\.min: must be at most actors\.max \(2\), got 3"),
            (["models.drafter=null"], r"^models\.drafter: must be set for drafter\.kind 'model', got null\. .*copy"),
            (["drafter.kind=[memory, parallel]", "models.drafter=null"], r"^models\.drafter: must be .* 'parallel'"),
            (["drafter.kind=previous"], r"^drafter\.previous: must be set .*, got null\. Name a run folder\.$"),
            (
                ["drafter.previous=runs/a"],
                r"^drafter\.previous: is of drafter\.kind previous, got runs/a with",
            ),
            (
                ["drafter.kind=[copy, previous]", "drafter.previous=o/", "output.path=o"],
                r"^drafter\.previous: is output\.path itself, got o/; expected another run\.",
            ),
            (["drafter.kind=previous", "drafter.previous=s3:/b/r"], r"^drafter\.previous: is no whole address"),
            (
                ["drafter.kind=copy", "drafter.memory=runs/a"],
                r"^drafter\.memory: is of drafter\.kind memory, got runs/a with drafter\.kind copy\. Add memory to",
            ),
            (["drafter.kind=memory", "drafter.memory=s3:/b/r"], r"^drafter\.memory: is no whole address"),
            (["input.template=summarize:"], r"^input\.template: must contain \{text\}, got 'summarize:'"),
            (
                ["confidence.kind=similarity", "drafter.kind=parallel"],
                r"^confidence\.kind: similarity is of a model that drafts token .*got drafter\.kind parallel\.",
            ),
            (
                ["confidence.kind=dropout", "drafter.kind=copy"],
                r"^confidence\.kind: dropout is of a model that drafts token by token .*got drafter\.kind copy\.",
            ),
            (
                ["models.drafter_dtype=int8", "models.dtype=bfloat16"],
                r"^models\.drafter_dtype: int8 goes with models\.dtype auto, .*got bfloat16\. .*drafter_dtype=same",
            ),
            (
                ["models.drafter_dtype=int4", "models.dtype=bfloat16"],
                r"^models\.drafter_dtype: int4 goes with models\.dtype auto, .*got bfloat16\. .*drafter_dtype=same",
            ),
            (
                ["models.drafter_dtype=int4", "models.dtype=int8", "drafter.kind=self"],
                r"^models\.drafter_dtype: is of drafter\.kind model and parallel, got int4 with drafter\.kind self",
            ),
            (
                ["models.drafter_dtype=int8", "drafter.kind=self"],
                r"^models\.drafter_dtype: is of drafter\.kind model and parallel, got int8 with drafter\.kind self",
            ),
        ],
    )
    def test_keys_that_do_not_fit_together(self, overrides: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            configured(*overrides)

    @pytest.mark.parametrize(
        "overrides", [["policy.kind=plain"], ["drafter.kind=copy"], ["drafter.kind=[memory, self]"]]
    )
    def test_no_drafter_model_is_needed_where_none_drafts(self, overrides: list[str]) -> None:
        assert configured("models.drafter=null", *overrides).models.drafter is None

    def test_the_defaults_keep_every_rule(self) -> None:
        check(Config())
        keys = {key for key, _ in flatten(Config())}
        assert {rule.key for rule in RULES} <= keys


class TestRoundTrips:
    CHANGES = (
        "input.template=Übersetze: {text}",
        "input.keep_columns=[en]",
        "models.source_language=no",
        "actors.gpus_each=0.5",
        "policy.kind=paper",
        "drafter.kind=[memory, lookup]",
    )

    def test_dictionary(self) -> None:
        config = configured(*self.CHANGES)
        assert from_dict(to_dict(config)) == config != configured()

    def test_yaml(self, tmp_path: Path) -> None:
        config = configured(*self.CHANGES)
        assert load([written(tmp_path, to_yaml(config))]) == config

    def test_a_dictionary_with_an_unknown_key(self) -> None:
        with pytest.raises(ConfigError, match=r"engine\.slot: unknown key"):
            from_dict({"engine": {"slot": 3}})


@pytest.mark.parametrize(
    ("policy", "verification", "claim"),
    [
        ("survival", "exact", "exact"),
        ("plain", "exact", "exact"),
        ("plain", "relaxed", "exact"),
        ("plain", "sampling", "in distribution"),
        ("fixed", "sampling", "in distribution"),
        ("fixed", "relaxed", "lossy"),
        ("paper", "modulated", "lossy"),
        ("fixed", "typical", "lossy"),
    ],
)
def test_what_may_be_said_of_the_output(policy: Any, verification: Any, claim: str) -> None:
    config = Config()
    config = replace(config, policy=replace(config.policy, kind=policy))
    config = replace(config, verification=replace(config.verification, kind=verification))
    assert config.lossless == claim


def test_a_claim_names_rounded_keys_and_values() -> None:
    models = {"dtype": "int8", "cache_dtype": "bfloat16"}
    said = "exact against the verifier rounded to int8 with keys and values in bfloat16"
    assert from_dict({"models": models}).claim == said
    assert from_dict({"models": {"cache_dtype": "bfloat16"}}).claim == said.replace(" rounded to int8", "")


@pytest.mark.parametrize(
    ("dtype", "against"),
    [
        ("auto", ""),
        ("float32", ""),
        ("float64", ""),
        ("int8", " against the verifier rounded to int8"),
        ("bfloat16", " against the verifier in bfloat16"),
        ("float16", " against the verifier in float16"),
    ],
)
def test_a_claim_names_the_model_that_it_is_about(dtype: Any, against: str) -> None:
    for kind, said in (("exact", "exact"), ("relaxed", "lossy")):
        config = from_dict({"models": {"dtype": dtype}, "verification": {"kind": kind}, "policy": {"kind": "fixed"}})
        assert (config.lossless, config.claim) == (said, said + against)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://AKIAKEY:se/cr+et@bucket/in", "s3://***@bucket/in"),
        ("simplecache::s3://AKIAKEY:secret@bucket/in", "simplecache::s3://***@bucket/in"),
        ("https://host/a.jsonl?X-Amz-Date=1&X-Amz-Signature=secret", "https://host/a.jsonl?X-Amz-Date=***&X-Amz-Sig"),
        ("https://host/a.jsonl?token=secret", "https://host/a.jsonl?token=***"),
    ],
)
@pytest.mark.parametrize("key", ["input.path", "output.path"])
def test_credentials_in_an_address_are_refused_and_not_shown(key: str, address: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([], ["input.path=in", "output.path=out", f"{key}={address}"])
    assert f"{key}: must not hold credentials, got {shown}" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "se/cr+et" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["s3://bucket/a:b@c", "http://host:8080/a@b", "https://host/a?versionId=3", "a:b@c"]
)
def test_other_addresses_are_fine(address: str) -> None:
    assert load([], [f"input.path={address}", "output.path=out"]).input.path == address


@pytest.mark.parametrize("key", ["input.path", "output.path"])
@pytest.mark.parametrize("address", ["s3://", "s3:", "s3:/bucket/in", "s3:///key", "gs:bucket", "https:/host/x"])
def test_an_address_that_would_be_taken_for_a_folder_is_refused(key: str, address: str) -> None:
    scheme = address.partition(":")[0]
    with pytest.raises(ConfigError, match=rf"^{key}: is no whole address, got {address}; expected {scheme}://BUCKET"):
        configured(f"{key}={address}")


@pytest.mark.parametrize(
    ("kind", "asked", "score"),
    [
        ("quantised", "auto", "margin"),
        ("quantised", "max_prob", "max_prob"),
        (["copy", "quantised"], "auto", "margin"),
        ("model", "auto", "max_prob"),
        ("parallel", "auto", "max_prob"),
        ("copy", "auto", "max_prob"),
    ],
)
def test_what_confidence_is_made_from_is_chosen_by_who_drafts(kind: object, asked: str, score: str) -> None:
    config = from_dict({"drafter": {"kind": kind}, "confidence": {"kind": asked}})
    assert config.score == score
