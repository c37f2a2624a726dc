"""Composition: groups, overrides and sweeps of Hydra, and its errors as one sentence."""

import json

import pytest
import yaml

from launch.compose import PointFailed, compose
from launch.messages import show_messages
from launch.overrides import _expanded
from launch.verb import Composed
from mlm.config import TrainConfig, as_dict, defaults, load
from mlm.errors import DataError, UserError
from tests.places import ROOT

CONF = ROOT / "conf"


def composed(
    *arguments: str, verb: str = "train", schema: str = "TrainConfig", **given
) -> Composed:
    jobs: list[Composed] = []
    compose(verb, schema, arguments, given, jobs.append)
    (job,) = jobs
    return job


def config(*arguments: str) -> TrainConfig:
    return load(TrainConfig, composed("data.corpus=sample", *arguments).settings)


def keys(tree: dict, prefix: str = "") -> set[str]:
    rows = set()
    for name, value in tree.items():
        rows |= keys(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return rows


def test_compose_gives_the_settings_of_the_dataclasses():
    assert keys(composed().settings) == keys(defaults(TrainConfig))


@pytest.mark.parametrize(("size", "parameters"), [("xl", 3_482_741_760), ("xxl", 10_712_994_816)])
def test_model_sizes_have_the_published_number_of_parameters(size, parameters):
    model = config(f"model={size}", "model.vocab_size=250880").model
    assert model.parameters() == parameters


@pytest.mark.parametrize("size", ["tiny", "mini", "base", "large", "xl", "xxl"])
def test_compose_loads_every_model_size(size):
    settings = config(f"model={size}", "parallel.tp=2", "parallel.pp=4", "parallel.dp=1")
    assert settings.model.num_hidden_layers >= 4
    assert settings.data.seq_len <= settings.model.max_tokens


@pytest.mark.parametrize("kind", ["polynomial", "linear", "cosine", "wsd"])
def test_compose_chooses_a_schedule_by_its_group(kind):
    schedule = config(f"schedule={kind}", "schedule.warmup_steps=10").schedule
    assert (schedule.kind, schedule.warmup_steps) == (kind, 10)


@pytest.mark.parametrize(
    "given", [["data.weights={sw: 2, no: 0.5}"], ["data.weights.sw=2", "data.weights.no=0.5"]]
)
def test_compose_takes_values_for_any_language(given):
    assert config(*given).data.weights == {"sw": 2.0, "no": 0.5}
    assert config("data.max_epochs_of.sw=3").data.max_epochs_of == {"sw": 3.0}
    assert config("data.alpha_schedule=[[9,0.5],[20,1]]").data.alpha_schedule == (
        (9, 0.5),
        (20, 1.0),
    )


def test_compose_takes_none_for_no_tracker():
    assert config("tracker=none").tracker.names == ()
    assert config().tracker.names == ("wandb",)


def test_compose_takes_one_tracker_or_a_list():
    tracker = config("tracker=[wandb,mine]", "tracker.project=p", "tracker.tags=[a]").tracker
    assert (tracker.names, tracker.project, tracker.tags) == (("wandb", "mine"), "p", ("a",))
    assert composed("tracker=[wandb,mine]").overrides == ["tracker=[wandb,mine]"]


def test_compose_takes_a_section_as_a_mapping():
    """`NAME=VALUE` is short for `NAME.kind=VALUE`, and a mapping is no kind."""
    tracker = config("tracker={kind: none, project: p}").tracker
    assert (tracker.names, tracker.project) == ((), "p")


def test_compose_prefers_a_file_of_the_group_to_a_kind(tmp_path, monkeypatch):
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "mine.yaml").touch()
    monkeypatch.setattr("launch.overrides.CONF", tmp_path)
    sections = defaults(TrainConfig)
    assert _expanded("schedule=mine", sections) == "schedule=mine"
    assert _expanded("schedule=wsd", sections) == "schedule.kind=wsd"


def test_compose_ranks_command_line_over_experiment_over_model():
    lr = config("model=tiny").optim.lr
    recipe = config("experiment=xlm-r-xl")
    assert recipe.optim.lr == 4e-4 != lr
    assert config("model=tiny", "experiment=xlm-r-xl", "optim.lr=7").optim.lr == 7
    assert config("experiment=xlm-r-xl", "model=tiny").model.hidden_size == 64
    assert config("model=tiny", "data.seq_len=64").data.seq_len == 64


@pytest.mark.parametrize(
    ("name", "layers", "parameters"),
    [("xlm-r-xl", 36, 3_482_741_760), ("xlm-r-xxl", 48, 10_712_994_816)],
)
def test_experiment_is_the_published_recipe(name, layers, parameters):
    recipe = config(f"experiment={name}")
    assert recipe.model.num_hidden_layers == layers
    assert recipe.model.parameters() == parameters
    assert (recipe.train.global_batch_size, recipe.data.seq_len) == (2048, 512)
    assert (recipe.train.steps, recipe.data.alpha) == (500_000, 0.3)


def test_conf_files_hold_only_shapes_and_other_values_than_defaults():
    plain = as_dict(TrainConfig())
    shape = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
    for path in (CONF / "model").glob("*.yaml"):
        for section, values in yaml.safe_load(path.read_text()).items():
            for name, value in values.items():
                is_default = plain[section][name] == (float(value) if name == "lr" else value)
                assert name in shape or not is_default, f"{path.name}: {section}.{name}"


@pytest.mark.parametrize("name", ["data.shards", "data.corpus", "data.tokenizer", "run.name"])
def test_compose_refuses_an_empty_path(name):
    """What an unset shell variable leaves: it would mean the working folder."""
    with pytest.raises(UserError, match=f"{name} is empty; give it a value, or omit it"):
        config("data.corpus=text", f"{name}=")


def test_compose_keeps_the_choice_of_model_and_the_overrides():
    job = composed("model=mini", "train.steps=3")
    assert (job.model, job.overrides, job.sweep) == ("mini", ["model=mini", "train.steps=3"], None)


def test_cfg_job_prints_the_settings_and_runs_nothing(capsys):
    ran = []
    compose("train", "TrainConfig", ["data.corpus=x", "--cfg", "job"], {}, ran.append)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == composed("data.corpus=x").settings
    assert ran == []


def test_compose_does_not_parse_positional_text_as_settings():
    text = "a, b {c} ${d} [e] = 'f\" \\ <mask>"
    job = composed(verb="fill", schema="FillConfig", path="runs/a=b", texts=[text])
    assert job.settings == {"path": "runs/a=b", "texts": [text], "top": 5}


def test_compose_refuses_a_setting_given_twice():
    with pytest.raises(UserError, match="path is given twice"):
        composed("path=b", verb="fill", schema="FillConfig", path="a")


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("train.stpes=3", "train.stpes is not a setting; did you mean train.steps?"),
        ("model.hiden_size=3", "did you mean model.hidden_size?"),
        ("modle=tiny", "did you mean model?"),
        ("model={a:1}", "model takes the name of a choice; write model.SETTING=VALUE for one"),
        ("zzz=1", "zzz is not a setting; `mlm train --help` lists them"),
        ("model=tny", "model=tny is not a choice of model; did you mean tiny? There are base,"),
        ("train.steps=1,2", "train.steps=1,2 is several values for one setting; add -m"),
        ("run.name=a(b", "'run.name=a(b' cannot be read as SETTING=VALUE"),
        ("my text", "'my text' is not SETTING=VALUE; folders and texts come before the first"),
        ("seed=${nope}", "Interpolation key 'nope' not found; `mlm train --help`"),
        ("--nope", "--nope is not an option of mlm train"),
        ("--cfg=nope", "invalid choice: 'nope'"),
    ],
)
def test_compose_reports_errors_of_hydra_in_one_sentence(argument, sentence, capfd):
    with pytest.raises(UserError) as raised:
        composed(argument)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.code == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("train.steps=many", "train.steps='many' is not possible: it should be a valid integer"),
        ("train=3", "train=3 is not possible"),
        ("+train.more=3", "train.more is not a setting"),
        ("train.dtype=fp16", "train.dtype='fp16' is not possible: it should be 'fp32' or 'bf16'"),
        ("parallel.zero=4", "parallel.zero=4 is not possible"),
        ("parallel.dp=some", "parallel.dp='some' is not possible"),
        ("train.steps=0", "train.steps=0 is below 1"),
        ("optim.lr=nan", "optim.lr=nan is not a finite number; give 0 or more"),
        ("optim.lr=inf", "optim.lr=inf is not a finite number"),
        ("optim.eps=-1", "optim.eps=-1 is below 1e-37"),
        ("optim.betas=[0.9]", "optim.betas=[0.9] has too few values; give it 2 or more"),
        ("optim.betas=[0.9,0.9,0.9]", "is not possible: it should have at most 2 items"),
        ("optim.betas=[0.9,1.5]", "optim.betas.1=1.5 is not below 1; give a number below 1"),
        ("schedule.power=-1", "schedule.power=-1 is below 0"),
        ("schedule.decay_steps=-5", "schedule.decay_steps=-5 is below 0"),
        ("eval.blocks_per_language=-1", "eval.blocks_per_language=-1 is below 0"),
        ("model.initializer_range=-1", "model.initializer_range=-1 is below 0"),
        ("model.intermediate_size=0", "model.intermediate_size=0 is below 1"),
        ("model.max_position_embeddings=1", "model.max_position_embeddings=1 is below 10"),
        (
            "data.weights=2",
            "data.weights=2 is not possible: it should be a mapping like {en: 2}",
        ),
        ("data.mask_ratio_schedule=3", "it should be a list like [1, 2]; give data.mask_ratio_"),
        ("data.weights={sw: much}", "data.weights.sw='much' is not possible: it should be a valid"),
        ("data.alpha_schedule=[[5]]", "data.alpha_schedule.0=[5] has too few values; give it 2"),
        ("guard.spike=-1", "guard.spike=-1 is below 0; give 0 or more"),
        ("model.pad_token_id=7", "model.pad_token_id=7 is not what every tokenizer here has, 1"),
    ],
)
def test_load_reports_a_wrong_value_in_one_sentence(argument, sentence):
    with pytest.raises(UserError) as raised:
        config(argument)
    assert sentence in str(raised.value)


def test_sweep_runs_its_points_in_turn_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    points: list[Composed] = []
    arguments = ["-m", "model=tiny", "seed=1,2", "optim.lr=1e-3,2e-3", "run.name=grid"]
    compose("train", "TrainConfig", arguments, {}, points.append)
    assert [job.sweep for job in points] == [f"grid/{n:03d}" for n in range(4)]
    found = [(job.settings["seed"], job.settings["optim"]["lr"]) for job in points]
    assert found == [(1, 1e-3), (1, 2e-3), (2, 1e-3), (2, 2e-3)]
    assert list(tmp_path.rglob("*.yaml")) == []


def test_sweep_without_a_name_gets_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    points: list[Composed] = []
    compose("train", "TrainConfig", ["-m", "model=tiny", "seed=1,2"], {}, points.append)
    compose("train", "TrainConfig", ["-m", "model=tiny,mini"], {}, points.append)
    first, second, third, _ = [str(job.sweep) for job in points]
    assert first.startswith("tiny-")
    assert first.removesuffix("/000") == second.removesuffix("/001")
    assert third.startswith("sweep-")
    assert list(tmp_path.rglob("*.yaml")) == []


@pytest.mark.parametrize(
    "flags", [["-m", "--cfg=job"], ["-m", "--info"], ["-m", "--run"], ["--cfg=job", "--info"]]
)
def test_compose_refuses_flags_that_exclude_each_other(flags):
    with pytest.raises(UserError, match=r"^--\w+ and --\w+ exclude each other; give one of them"):
        compose("train", "TrainConfig", ["seed=1,2", *flags], {}, lambda job: None)


def test_sweep_continues_after_a_failed_point_and_keeps_its_code(tmp_path, monkeypatch, capfd):
    show_messages()
    monkeypatch.chdir(tmp_path)
    seen = []

    def task(job: Composed) -> float:
        seen.append(job.settings["seed"])
        if job.settings["seed"] == 2:
            raise DataError("no such text")
        return 1.0

    with pytest.raises(PointFailed) as raised:
        compose("train", "TrainConfig", ["-m", "seed=1,2,3", "run.name=x"], {}, task)
    assert seen == [1, 2, 3]
    assert raised.value.code == 76
    assert "mlm: x/001: no such text\n" in capfd.readouterr().err


def test_sweep_that_cannot_be_composed_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="model=tny is not a choice"):
        compose("train", "TrainConfig", ["-m", "model=tiny,tny", "run.name=x"], {}, print)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_sweep_is_refused_outside_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="only mlm train runs sweeps"):
        compose("tokenizer", "TokenizerConfig", ["-m", "vocab_size=1,2"], {}, print)
    assert list(tmp_path.iterdir()) == []


def test_compose_gives_plain_values():
    settings = composed("tracker.tags=[a,b]", "optim.betas=[0.8,0.9]").settings
    assert json.loads(json.dumps(settings)) == settings
    assert load(TrainConfig, settings | {"data": {"corpus": "x"}}).optim.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    "text",
    ["20240101", "1e5", "1_000", "007", "0.5", ".5", "-3", "inf", "nan", "true", "False", "~x"],
)
def test_compose_takes_a_text_that_looks_like_another_value_as_text(text):
    assert composed(f"run.name={text}", f"data.corpus={text}").settings["run"]["name"] == text
    made = composed(f"corpus={text}", verb="tokenizer", schema="TokenizerConfig")
    assert made.settings["corpus"] == text


def test_compose_keeps_null_numbers_and_lists_where_they_are_meant():
    made = composed("run.name=null", "seed=7", "parallel.dp=2", "tracker=[wandb,none]").settings
    assert (made["run"]["name"], made["seed"], made["parallel"]["dp"]) == (None, 7, 2)
    assert made["tracker"]["kind"] == ["wandb", "none"]
    assert composed("run.name='2024'").settings["run"]["name"] == "2024"


def test_compose_replaces_the_users_own_folder_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    made = composed("run.dir=~/runs", "data.corpus=~", 'data.shards="~/a b"').settings
    assert made["run"]["dir"] == f"{tmp_path}/runs"
    assert (made["data"]["corpus"], made["data"]["shards"]) == (str(tmp_path), f"{tmp_path}/a b")
    assert composed('run.name="a~b"').settings["run"]["name"] == "a~b"
