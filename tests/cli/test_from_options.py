"""Commands are made of the options dataclasses: name, help, default and limits stand there and nowhere else."""

import ast
import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from coma.bench.options import EpochOptions, LoaderOptions, StepOptions
from coma.cli.main import app
from coma.errors import UsageError
from coma.evaluation.options import KnnOptions, ProbeOptions
from coma.exports.options import ExportOptions
from coma.pictures.options import ReconstructOptions
from coma.shards.check.options import VerifyOptions
from coma.shards.index.options import IndexOptions
from coma.shards.option import Option, options_of
from coma.shards.write.options import ShardCommand
from coma.training import FinetuneConfig, PretrainConfig
from coma.training.config.resolve import DEFAULT_BATCH_CPU, DEFAULT_BATCH_GPU, MOST_STEPS_PER_CHECKPOINT

ROOT = Path(__file__).parents[2]
MADE_OF = {
    "pretrain": PretrainConfig,
    "plan": PretrainConfig,
    "finetune": FinetuneConfig,
    "shard": ShardCommand,
    "index": IndexOptions,
    "verify": VerifyOptions,
    "probe": ProbeOptions,
    "knn": KnnOptions,
    "reconstruct": ReconstructOptions,
    "export": ExportOptions,
    "bench loader": LoaderOptions,
    "bench step": StepOptions,
    "bench epoch": EpochOptions,
}
EVERY = [(name, each) for name, options in MADE_OF.items() for each in options_of(options)]
IDS = [f"{name} {each.flag}" for name, each in EVERY]
OWN_FILES = {
    "pretrain": "cli/pretrain.py",
    "plan": "cli/plan.py",
    "finetune": "cli/finetune.py",
    "shard": "cli/shard.py",
    "index": "cli/index.py",
    "verify": "cli/verify.py",
    "probe": "cli/probe.py",
    "knn": "cli/knn.py",
    "reconstruct": "cli/reconstruct.py",
    "export": "cli/export.py",
    "bench": "cli/bench.py",
}


def command_of(name: str) -> Any:
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    return command


@functools.cache
def help_of(name: str) -> str:
    """The help page as one line of words."""
    shown = CliRunner(env={"COLUMNS": "10000"}).invoke(app, [*name.split(), "--help"]).stdout
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╰─╮╯]", " ", shown).split())


@pytest.mark.parametrize("name", MADE_OF)
def test_every_field_is_an_option(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(MADE_OF[name])}
    assert {each.name for each in options_of(MADE_OF[name])} == fields
    assert fields <= {parameter.name for parameter in command_of(name).params}


@pytest.mark.parametrize(("name", "option"), EVERY, ids=IDS)
def test_a_parameter_is_its_field(name: str, option: Option) -> None:
    (parameter,) = (each for each in command_of(name).params if each.name == option.name)
    (field,) = (each for each in dataclasses.fields(MADE_OF[name]) if each.name == option.name)
    if field.default is dataclasses.MISSING:
        assert parameter.required
    elif isinstance(field.default, tuple):
        assert option.parse is not None
        assert option.parse(parameter.default, option.flag) == field.default
    else:
        assert parameter.default == field.default
    assert parameter.opts == ([option.name] if option.argument else [option.flag])
    shown = option.shown_default
    if shown is None and field.default not in (None, False, dataclasses.MISSING):
        shown = f"{field.default:g}" if isinstance(field.default, float) else str(parameter.default)
    line = f"{option.help} [default: {shown}]" if shown else option.help
    assert line in help_of(name)


@pytest.mark.parametrize("option", [each for _, each in EVERY], ids=IDS)
def test_help_is_a_sentence(option: Option) -> None:
    assert re.fullmatch(r"(auto|full|[A-Z0-9]).*[^.]\.", option.help)
    assert not re.match(r"Of |That |This ", option.help)


def test_a_command_says_nothing_about_its_options_again() -> None:
    for name, path in OWN_FILES.items():
        options = [each for key, cls in MADE_OF.items() if key.split()[0] == name for each in options_of(cls)]
        words = {n.value for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.Constant)}
        assert not words & {text for each in options for text in (each.flag, each.help)}, path


def test_numbers_in_words_are_those_of_the_code() -> None:
    shown = {each.name: each.shown_default or "" for each in options_of(PretrainConfig)}
    assert shown["batch_size"].startswith(f"{DEFAULT_BATCH_GPU} on GPUs, {DEFAULT_BATCH_CPU} on a CPU")
    assert shown["save_every"].endswith(f"at most {MOST_STEPS_PER_CHECKPOINT}")
    assert float(shown["epochs"]) == PretrainConfig.default_epochs


@pytest.mark.parametrize("config", [PretrainConfig(), FinetuneConfig(source=Path("x"))])
def test_the_config_file_has_the_fields(config: PretrainConfig | FinetuneConfig) -> None:
    assert list(json.loads(json.dumps(config.to_json()))) == [field.name for field in dataclasses.fields(config)]
    assert set(config.identity()) <= {each.flag for each in options_of(type(config))}


def options_given(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a command hands on for a command line."""
    made: list[Any] = []
    cls: Any = MADE_OF[name]
    before = cls.__post_init__

    def keep(self: Any) -> None:
        before(self)
        made.append(self)
        raise UsageError("enough")

    monkeypatch.setattr(cls, "__post_init__", keep)
    CliRunner().invoke(app, [*name.split(), *arguments])
    monkeypatch.setattr(cls, "__post_init__", before)
    return made[0]


def test_what_is_typed_becomes_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    given = options_given(
        "shard", "photos", "--shard-bytes", "1MiB", "--part", "2/3", "--resize", "64", monkeypatch=monkeypatch
    )
    assert given == ShardCommand(source=Path("photos"), shard_bytes=2**20, part=(2, 3), resize_px=64)
    given = options_given("bench step", "--models", "dyvit_nano:coma, dyvit_tiny:mae", monkeypatch=monkeypatch)
    assert given == StepOptions(models=("dyvit_nano:coma", "dyvit_tiny:mae"))
    given = options_given("finetune", "runs/x", "--out", "y", "--compile", "--epochs", "3", monkeypatch=monkeypatch)
    assert given == FinetuneConfig(source="runs/x", out=Path("y"), compile=True, epochs=3.0)
    for name in ("pretrain", "plan"):
        assert options_given(name, monkeypatch=monkeypatch) == PretrainConfig()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("pretrain --steps 0", "--steps is 0; it must be from 1 to 1000000000000"),
        ("pretrain --epochs 0", "--epochs is 0.0; it must be above 0 and at most 1000000.0"),
        ("pretrain --base-lr nan", "--base-lr is nan; it must be above 0"),
        ("plan --method dino", "--method is 'dino'; it must be coma or independent or mae"),
        ("finetune run --crop-scale 2", "--crop-scale is 2.0; it must be above 0 and at most 1"),
        ("finetune run --ema-decay 1", "--ema-decay is 1.0; it must be from 0 to 0.999999"),
        ("shard photos --val-fraction 1", "--val-fraction is 1.0; it must be at least 0 and below 1"),
        ("shard photos --resize 0", "--resize is 0; it must be from 1 to 65500"),
        ("bench step --views 1", "--views is 1; it must be at least 2"),
    ],
)
def test_limits_are_one_line_that_names_flag_value_and_limit(arguments: str, says: str, coma: Any) -> None:
    done = coma(*arguments.split())
    assert (done.code, done.out, done.err) == (2, "", f"error: {says}\n")


@pytest.mark.parametrize(
    "arguments", ["pretrain --steps abc", "shard x --seed 1.5", "bench epoch --rounds x", "finetune"]
)
def test_what_is_no_number_or_missing_is_the_parsers_to_refuse(arguments: str, coma: Any) -> None:
    assert coma(*arguments.split()).code == 2


def test_an_option_that_was_renamed_is_refused_with_its_name_of_today(coma: Any) -> None:
    assert "--ema-decay" in coma("finetune", "run", "--average-decay", "0.9").err
