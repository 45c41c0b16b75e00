from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from coma.errors import UsageError
from coma.training.config.ds_config import read_ds_config
from coma.training.config.options import PretrainConfig
from coma.training.config.resolve import ResolvedRun, resolve
from coma.training.config.schedule import Segment
from coma.training.run_folder import RunFolder, choose_run, write_config

CONFIG = PretrainConfig(model="dyvit_tiny", steps=10, batch_size=8)


def plan(config: PretrainConfig, **facts: Any) -> ResolvedRun:
    given = {"data": "d", "fingerprint": "f", "samples_per_epoch": 80, "world_size": 1, "device": "cpu"}
    return resolve(config, read_ds_config(config.ds_config), **{**given, "has_bf16": False, **facts})


def begin(run: Path, config: PretrainConfig = CONFIG, step: int | None = None) -> None:
    write_config(run, config, plan(config))
    if step is not None:
        (run / "checkpoints" / f"step-{step:06}").mkdir(parents=True)
        (run / "checkpoints" / f"step-{step:06}" / "checkpoint.json").write_text("{}")
        (run / "checkpoints" / "latest").write_text(f"step-{step:06}\n")
        if step == config.steps:
            (run / "report.html").write_text("")


def choose(config: PretrainConfig = CONFIG, **facts: Any) -> RunFolder:
    return choose_run(config, plan(config, **facts))


def test_the_first_run_is_named_after_the_model(elsewhere: Path) -> None:
    assert choose() == RunFolder(Path("runs/dyvit_tiny"))
    assert not Path("runs").exists()


def test_an_unfinished_run_of_the_same_command_is_gone_on_with(elsewhere: Path) -> None:
    begin(Path("runs/dyvit_tiny"), step=4)
    assert choose() == RunFolder(Path("runs/dyvit_tiny"), begun=True)
    watched = dataclasses.replace(CONFIG, stop_after=3, save_every=2, devices=1, workers=5, ds_config="zero3_offload")
    assert choose(watched, world_size=2) == RunFolder(Path("runs/dyvit_tiny"), begun=True)
    for kernel in ({"foreach": True}, {"fused": False}):
        Path("kernel.json").write_text(json.dumps({"gradient_clipping": 1.0, "optimizer": {"params": kernel}}))
        found = choose(dataclasses.replace(CONFIG, ds_config="kernel.json"))
        assert found == RunFolder(Path("runs/dyvit_tiny"), begun=True)
    Path("eps.json").write_text('{"gradient_clipping": 1.0, "optimizer": {"params": {"eps": 1e-6}}}')
    assert not choose(dataclasses.replace(CONFIG, ds_config="eps.json")).begun


@pytest.mark.parametrize(
    "other",
    [{"steps": 11}, {"seed": 1}, {"base_lr": 1e-3}, {"views": 3}, {"batch_size": 4}],
)
def test_another_command_takes_the_next_name(elsewhere: Path, other: dict[str, Any]) -> None:
    begin(Path("runs/dyvit_tiny"), step=4)
    assert choose(dataclasses.replace(CONFIG, **other)) == RunFolder(Path("runs/dyvit_tiny-2"))


def test_other_data_and_finished_runs_take_the_next_name(elsewhere: Path) -> None:
    begin(Path("runs/dyvit_tiny"), step=4)
    begin(Path("runs/dyvit_tiny-2"), step=10)
    assert choose(fingerprint="g").path == Path("runs/dyvit_tiny-3")
    begin(Path("runs/dyvit_tiny"), step=10)
    assert choose().path == Path("runs/dyvit_tiny-3")
    Path("runs/dyvit_tiny/report.html").unlink()  # it was killed before it was written
    assert choose() == RunFolder(Path("runs/dyvit_tiny"), begun=True, finished=True)


def test_a_new_run_says_what_keeps_it_from_going_on_with_the_one_before(elsewhere: Path) -> None:
    assert choose().beside is None
    begin(Path("runs/dyvit_tiny"), step=4)
    other = choose(dataclasses.replace(CONFIG, base_lr=0.5))
    assert other.path == Path("runs/dyvit_tiny-2")
    assert other.beside is not None
    assert other.beside.startswith("runs/dyvit_tiny holds another run: ")
    assert other.beside.endswith("is 0.5 now: this is a new one")
    content = json.loads(Path("runs/dyvit_tiny/config.json").read_text())
    older = {**content, "identity": {**content["identity"], "format": 1}}
    Path("runs/dyvit_tiny/config.json").write_text(json.dumps(older))
    found = choose().beside
    assert found is not None
    assert re.fullmatch(r"runs/dyvit_tiny is of format 1, .* only: this is a new one", found)
    Path("runs/dyvit_tiny/config.json").write_text(json.dumps(content))
    Path("other.json").write_text('{"gradient_clipping": 0.5}')
    found = choose(dataclasses.replace(CONFIG, ds_config="other.json")).beside
    assert found is not None
    assert "--ds-config's content, gradient_clipping was 1.0 there and is 0.5 now" in found


def test_never_resuming_takes_the_next_name_or_refuses_the_one_given(elsewhere: Path) -> None:
    begin(Path("runs/dyvit_tiny"), step=4)
    never = dataclasses.replace(CONFIG, resume="never")
    assert choose(never).path == Path("runs/dyvit_tiny-2")
    with pytest.raises(UsageError, match="--resume is never"):
        choose(dataclasses.replace(never, out=Path("runs/dyvit_tiny")))


def test_a_folder_whose_name_is_not_utf8_is_refused(elsewhere: Path) -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        choose(dataclasses.replace(CONFIG, out=Path("caf\udce9")))


def test_a_given_folder_is_the_same_run_or_empty(elsewhere: Path) -> None:
    given = dataclasses.replace(CONFIG, out=Path("mine"))
    assert choose(given) == RunFolder(Path("mine"))
    Path("mine").mkdir()
    assert choose(given) == RunFolder(Path("mine"))
    begin(Path("mine"), step=10)
    assert choose(given) == RunFolder(Path("mine"), begun=True, finished=True)
    with pytest.raises(UsageError, match=r"--seed was 0 there and is 5 now: give another --out"):
        choose(dataclasses.replace(given, seed=5))


def test_a_run_of_an_older_version_is_refused_and_not_gone_on_with(elsewhere: Path) -> None:
    begin(Path("runs/dyvit_tiny"), step=4)
    path = Path("runs/dyvit_tiny/config.json")
    content = json.loads(path.read_text())
    del content["identity"]["format"]
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"of format 1, from an older version.*another --out"):
        choose(dataclasses.replace(CONFIG, out=Path("runs/dyvit_tiny")))
    assert choose() == RunFolder(Path("runs/dyvit_tiny-2"))


def longer(steps: int, **options: Any) -> PretrainConfig:
    return dataclasses.replace(CONFIG, steps=steps, out=Path("mine"), **options)


@pytest.mark.parametrize("step", [4, 10])
def test_more_steps_are_refused_with_the_option_that_takes_them(elsewhere: Path, step: int) -> None:
    begin(Path("mine"), step=step)
    with pytest.raises(
        UsageError, match=r"the number of steps was 10 there and is 60 now: give --extend to train it for longer, or an"
    ):
        choose(longer(60))
    with pytest.raises(UsageError, match=r"was 10 there and is 6 now: give another --out"):
        choose(longer(6))
    found = choose(longer(60, extend=True))
    assert found == RunFolder(Path("mine"), begun=True, segments=(Segment(0, 0, 10, 0), found.segments[1]))
    assert found.segments[1] == Segment(step, step, 60, round((60 - step) / 20))


def test_without_a_folder_the_option_is_named_beside_the_new_run(elsewhere: Path) -> None:
    begin(Path("runs/dyvit_tiny"), step=10)
    beside = choose(dataclasses.replace(CONFIG, steps=60)).beside
    assert beside is not None
    assert beside.endswith("this is a new one, and --out runs/dyvit_tiny --extend trains that one for longer")


def test_an_extended_run_is_resumed_with_its_numbers(elsewhere: Path) -> None:
    begin(Path("mine"), step=10)
    extended = choose(longer(60, extend=True))
    resolved = dataclasses.replace(plan(longer(60)), segments=extended.segments)
    write_config(Path("mine"), longer(60, extend=True), resolved)
    for again in (longer(60), longer(60, extend=True)):
        assert choose(again) == extended
    begin(Path("mine"), CONFIG)  # as it was before
    with pytest.raises(UsageError, match="was 10 there and is 60 now"):
        choose(longer(60))


@pytest.mark.parametrize("steps", [1, 10])
def test_an_extension_must_be_one(elsewhere: Path, steps: int) -> None:
    begin(Path("mine"), step=4)
    with pytest.raises(UsageError, match=f"mine has, which are 10, and these are {steps}: give more"):
        choose(longer(steps, extend=True))


def test_nothing_but_the_length_is_extended(elsewhere: Path) -> None:
    begin(Path("mine"), step=4)
    with pytest.raises(UsageError, match=r"--base-lr was 0.0006 there and is 0.5 now: give another --out"):
        choose(longer(60, extend=True, base_lr=0.5))
    with pytest.raises(UsageError, match="--schedule was 'cosine' there and is 'constant' now: give another --out"):
        choose(longer(60, extend=True, schedule="constant"))
    with pytest.raises(UsageError, match="--extend: new holds no run yet: leave --extend out"):
        choose(dataclasses.replace(longer(60, extend=True), out=Path("new")))


def test_a_run_of_the_version_before_extensions_is_extended(elsewhere: Path) -> None:
    begin(Path("mine"), step=4)
    path = Path("mine/config.json")
    content = json.loads(path.read_text())
    del content["resolved"]["segments"], content["identity"]["--schedule"]
    del content["identity"]["the number of cooldown steps"]
    path.write_text(json.dumps(content))
    assert choose(dataclasses.replace(CONFIG, out=Path("mine"))) == RunFolder(Path("mine"), begun=True)
    assert choose(longer(60, extend=True)).segments == (Segment(0, 0, 10, 0), Segment(4, 4, 60, 3))


def test_a_folder_that_is_no_run_is_left_alone(elsewhere: Path) -> None:
    Path("photos").mkdir()
    Path("photos/a.jpg").touch()
    with pytest.raises(UsageError, match="photos is not empty"):
        choose(dataclasses.replace(CONFIG, out=Path("photos")))
    with pytest.raises(UsageError, match="is a file"):
        choose(dataclasses.replace(CONFIG, out=Path("photos/a.jpg")))
    assert [path.name for path in Path("photos").iterdir()] == ["a.jpg"]


def test_a_file_of_the_default_name_is_stepped_over_without_a_word_of_a_flag(elsewhere: Path) -> None:
    Path("runs").mkdir()
    Path("runs/dyvit_tiny").touch()
    chosen = choose()
    assert chosen.path == Path("runs/dyvit_tiny-2")
    assert chosen.beside == "runs/dyvit_tiny is a file: this is a new one"


def test_the_configuration_explains_the_run(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG, plan(CONFIG), parameters=123)
    written = json.loads((tmp_path / "config.json").read_text())
    assert PretrainConfig.from_json(written["config"]) == CONFIG
    resolved = written["resolved"]
    assert (resolved["steps"], resolved["batch_size"], resolved["parameters"]) == (10, 8, 123)
    assert resolved["deepspeed"]["train_batch_size"] == 8
    assert {"coma", "torch", "deepspeed", "python"} <= set(written["versions"])
