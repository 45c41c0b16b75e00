"""Files of options: what they may hold, what is refused in one line, and that a printed one is the same options."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coma.deepspeed_configs import packaged
from coma.errors import UsageError
from coma.recipes import packaged as recipes
from coma.shards.option import options_of
from coma.training import FinetuneConfig, PretrainConfig
from coma.training.config.config_file import as_yaml, options_like, read_options


def write(folder: Path, text: str, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_bytes(text.encode())
    return str(path)


SAME = {
    "run.yaml": "model: dyvit_tiny\nbase-lr: 6e-5\nsteps: 7\ncompile: true\nout: no\ndata: null\nseed: 010\n",
    "run.yml": "{model: dyvit_tiny, base_lr: 0.00006, steps: '7', compile: True, out: 'no', seed: 10}",
    "run.toml": 'model = "dyvit_tiny"\nbase-lr = 6e-5\nsteps = 7\ncompile = true\nout = "no"\nseed = 10\n',
    "run.json": '{\n\t"model": "dyvit_tiny", "base-lr": 6e-5, "steps": 7, "compile": true, "out": "no", "seed": 10}',
    "run": '{\n\t"model": "dyvit_tiny", "base-lr": 6e-5, "steps": 7, "compile": true, "out": "no", "seed": 10}',
}


@pytest.mark.parametrize("name", SAME)
def test_each_language_says_the_same(name: str, tmp_path: Path) -> None:
    """Numbers as the command line takes them, and words that YAML 1.1 takes for something else as they stand."""
    read = read_options(write(tmp_path, SAME[name], name), PretrainConfig)
    assert read == {"model": "dyvit_tiny", "base_lr": 6e-5, "steps": 7, "compile": True, "out": "no", "seed": 10}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch: 3", "has 'epoch', which is no option of coma pretrain: did you mean 'epochs'?"),
        ("weight_decey: 3", "has 'weight_decey', which is no option of coma pretrain: did you mean 'weight-decay'?"),
        ("zzz: 3", "has 'zzz', which is no option of coma pretrain: coma pretrain --help"),
        ("mixup: 1", "has 'mixup', which is an option of coma finetune, not of coma pretrain"),
        ("epochs: many", ": epochs is 'many'; it must be a number, above 0 and at most 1000000.0"),
        ("epochs: nan", ": epochs is 'nan'; it must be a number, above 0 and at most 1000000.0"),
        ("views: 2.5", ": views is '2.5'; it must be a whole number, at least 1"),
        ("views:\n- 2", ": views is ['2']; it must be a whole number, at least 1"),
        ("method: dino", ": method is 'dino'; it must be coma or independent or mae"),
        ("micro-batch-size: all", ": micro-batch-size is 'all'; it must be a whole number, at least 1, or auto"),
        ("compile: yes", ": compile is 'yes'; it must be true or false"),
        ("log-to: [wandb, mlflow]", ": log-to is ['wandb', 'mlflow']; it must be text, such as wandb,mlflow,trackio"),
        ("model: {name: x}", ": model is {'name': 'x'}; it must be text, such as NAME"),
        ("weight-decay: 1\nweight_decay: 1", "has 'weight-decay' twice: delete one of them"),
        ("epochs: 1\nepochs: 2", "is not YAML: the key 'epochs' stands twice"),
        ('{"epochs": 1, "epochs": 2}', "is not YAML: the key 'epochs' stands twice"),
        ("epochs: [", "is not YAML: while parsing a flow node"),
        ("out: !!python/object/apply:os.system [ls]", "is not YAML: could not determine a constructor for the tag"),
        ("epochs = 3", "holds no options: write one a line, such as epochs: 100; TOML has the suffix .toml"),
        ("- epochs", "holds no options: write one a line, such as epochs: 100"),
        ("# nothing\n", "is empty: write options into it, such as epochs: 100"),
        ("zero_optimization:\n  stage: 1", "has 'zero_optimization' and is a DeepSpeed configuration: give it by --ds"),
    ],
)
def test_mistakes_are_one_line_that_names_file_key_value_and_limit(text: str, says: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        read_options(file, PretrainConfig)
    assert str(raised.value).startswith(f"{file}{'' if says.startswith(':') else ' '}{says}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '{"steps": true}', "steps is True; it must be a whole number"),
        ("a.json", '{"out": true}', "out is True; it must be text"),
        ("a.json", '{"steps": 1.0}', "steps is 1.0; it must be a whole number"),
        ("a.json", '{"steps": 1', "is not JSON"),
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.toml", "steps: 1", "is not TOML"),
        ("a.yaml", "model: \xff", None),
    ],
)
def test_types_and_syntax_of_json_and_toml(name: str, text: str, says: str | None, tmp_path: Path) -> None:
    if says is None:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        says = "is not text in UTF-8"
    else:
        write(tmp_path, text, name)
    with pytest.raises(UsageError, match=re.escape(says)):
        read_options(str(tmp_path / name), PretrainConfig)


@pytest.mark.parametrize("path", packaged().values(), ids=lambda path: path.stem)
def test_a_deepspeed_file_is_recognised(path: Path) -> None:
    with pytest.raises(UsageError, match="is a DeepSpeed configuration: give it by --ds-config"):
        read_options(str(path), PretrainConfig)


def test_a_path_that_is_no_file_has_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "epochs: 1")
    with pytest.raises(UsageError, match=r"--config run.yml: no such file; did you mean 'run.yaml'\?"):
        read_options("run.yml", PretrainConfig)
    with pytest.raises(UsageError, match=r"--config fotographs: no such file; did you mean 'photographs'\?"):
        read_options("fotographs", PretrainConfig)
    (tmp_path / "run").mkdir()
    with pytest.raises(UsageError, match="--config run is a folder: give a file"):
        read_options("run", PretrainConfig)
    write(tmp_path, "{}", "run/config.json")
    with pytest.raises(UsageError, match=r"give run/config\.json, or --like run for a new run"):
        read_options("run", PretrainConfig)


def test_a_recipe_is_found_by_name_beside_a_folder_of_that_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    expected = read_options(str(recipes()["photographs"]), PretrainConfig)
    assert read_options("photographs", PretrainConfig) == read_options("photographs.yaml", PretrainConfig) == expected
    write(tmp_path, "epochs: 3", "photographs.yaml")
    assert read_options("photographs.yaml", PretrainConfig) == {"epochs": 3}, "a file here comes first"


WORDS = st.text(st.characters(exclude_categories=[], exclude_characters="\0"), min_size=1, max_size=12)


@given(out=WORDS, model=WORDS, base_lr=st.floats(1e-300, 1e300), seed=st.integers(0, 2**63 - 1), compile=st.booleans())
def test_what_is_printed_is_read_as_the_same_options(tmp_path_factory: Any, **values: Any) -> None:
    config = PretrainConfig(**{**values, "out": Path(values["out"].replace(":", "_"))})
    file = tmp_path_factory.mktemp("printed") / "run.yaml"
    file.write_text(as_yaml(config), "ascii")
    assert PretrainConfig(**read_options(str(file), PretrainConfig)) == config


@pytest.mark.parametrize("config", [PretrainConfig(), FinetuneConfig(source="null", steps=3, out=Path("1e3"))])
def test_every_option_is_printed_once_below_its_help(config: Any, tmp_path: Path) -> None:
    text = as_yaml(config)
    described = options_of(type(config))
    assert [line.split(":")[0] for line in text.splitlines() if re.match(r"[a-z-]+:", line)] != []
    for each in described:
        assert len(re.findall(rf"^{each.name.replace('_', '-')}: ", text, re.M)) == 1
        assert each.help.split(". ")[0] in " ".join(text.replace("\n# ", " ").split())
    assert len(re.findall(r"^## ", text, re.M)) == len({each.panel for each in described})
    assert max(map(len, text.splitlines())) <= 80
    assert type(config)(**read_options(write(tmp_path, text), type(config))) == config


RECORD = {
    "config": {
        "data": None, "model": "dyvit_tiny", "batch_size": None, "epochs": 3.0, "seed": 5, "out": "runs/a",
        "devices": 2, "resume": "never", "extend": True, "stop_after": 4, "evaluate_every": None,
    },
    "resolved": {"data": "/data/photos", "batch_size": 64, "steps": 9},
    "versions": {"torch": "2"},
    "identity": {"format": 2},
}  # fmt: skip


def test_the_record_of_a_run_is_a_file_of_options(tmp_path: Path) -> None:
    """What depends on the place where it began is what it came to."""
    read = read_options(write(tmp_path, json.dumps(RECORD), "config.json"), PretrainConfig)
    expected = {name: value for name, value in RECORD["config"].items() if value is not None}
    assert read == {**expected, "data": "/data/photos", "batch_size": 64}
    relative = {**RECORD, "config": {**RECORD["config"], "data": "photos"}}
    read = read_options(write(tmp_path, json.dumps(relative), "config.json"), PretrainConfig)
    assert read["data"] == "/data/photos", "which is found from another folder too"
    unresolved = {"config": {"data": "photos", "epochs": None}, "identity": {}}
    read = read_options(write(tmp_path, json.dumps(unresolved), "config.json"), PretrainConfig)
    assert read == {"data": "photos"}


def test_a_section_that_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 'config'"):
        read_options(write(tmp_path, json.dumps({**RECORD, "more": {}}), "config.json"), PretrainConfig)


def test_a_new_run_takes_what_is_no_matter_of_one_command(tmp_path: Path) -> None:
    write(tmp_path, json.dumps(RECORD), "config.json")
    assert options_like(tmp_path, PretrainConfig) == {
        "data": "/data/photos", "model": "dyvit_tiny", "batch_size": 64, "epochs": 3.0, "seed": 5, "devices": 2
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"config\.json has 'model', which is an option of coma pretrain, not of coma"):
        options_like(tmp_path, FinetuneConfig)


def test_an_old_name_in_a_record_is_todays(tmp_path: Path) -> None:
    record = {"config": {"source": "runs/a", "average_decay": 0.9}, "resolved": {}}
    assert read_options(write(tmp_path, json.dumps(record), "config.json"), FinetuneConfig)["ema_decay"] == 0.9


def test_the_file_on_the_documents_page_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[4] / "docs" / "configuration.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.S | re.M)
    assert read_options(write(tmp_path, block), PretrainConfig)["base_lr"] == 6e-4
    for name in recipes():
        assert f"| `{name}` |" in page
