"""What the system, a store, a terminal or a name from the data does ends in one line, never in a traceback."""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from drawn import draw_images, shard_images

from coma.shards.manifest import read_manifest

CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in `pets`, their shards in `data`, and things that commands stumble over."""
    folder = tmp_path_factory.mktemp("faults")
    draw_images(folder / "pets", 4, classes=("cat", "dog"))
    shard_images(folder / "pets", folder / "data")
    (folder / "loop").symlink_to("loop")
    shutil.copytree(folder / "data", folder / "damaged")
    (folder / "damaged/train/manifest.parquet").write_bytes(b"PAR1 and no more")
    shutil.copytree(folder / "data", folder / "unread")
    (folder / "unread/quarantine.parquet").write_bytes(b"PAR1 and no more")
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def assert_one_line(err: str) -> str:
    """Return the error, which is the one line of its kind and the last."""
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors == [err.splitlines()[-1]]
    assert not CONTROLS.search(err)
    return errors[0]


LONG = "n" * 300


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (1, "loop", "shard loop out"),
        (1, "loop", "shard pets loop"),
        (3, "loop", "inspect loop"),
        (1, LONG, f"shard pets {LONG}"),
        (1, LONG, f"inspect {LONG}"),
        (2, LONG, f"inspect data --sheet {LONG}"),
        (1, "data/_info.json/below", "shard pets data/_info.json/below"),
        (3, "damaged/train/manifest.parquet", "inspect damaged"),
        (3, "damaged/train/manifest.parquet", "verify damaged"),
        (3, "unread/quarantine.parquet", "inspect unread"),
        (2, "s3://b/pets: only a local path", "shard s3://b/pets out"),
        (2, "https://h/tars: only a local path", "index https://h/tars out"),
        (2, "gs://b/sheet.png: only a local path", "inspect data --sheet gs://b/sheet.png"),
        (2, "s3://b/run: only a local path", "report s3://b/run"),
        (2, "s3://b/run: only a local path", "pretrain data --out s3://b/run"),
        (2, "s3://b/run: only a local path", "look s3://b/run photos"),
        (2, "file://host/data", "inspect file://host/data"),
        (2, "%23", "shard file:///pets#1 out"),
        (2, "nosuch://a/b", "shard pets nosuch://a/b"),
        (3, r"caf\xe9", "verify caf\udce9"),
    ],
)
def test_a_fault_of_the_world_is_one_line_and_an_exit_code(code: int, said: str, words: str, coma) -> None:
    done = coma(*words.split())
    assert said in assert_one_line(done.err)
    assert done.code in (code, 2)  # a name may be refused before the system is asked


def test_file_urls_stand_wherever_a_path_can(place: Path, tmp_path: Path, coma) -> None:
    source, out = f"file://{place}/pets", f"FILE://localhost{tmp_path}/a%20b"
    assert coma("shard", source, out, "--workers", "1").code == 0
    assert coma("verify", out).code == 0
    sheet = coma("inspect", f"file://{tmp_path}/a b", "--sheet", f"file://{tmp_path}/caf%E9.png")
    assert sheet.code == 0, sheet.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b", "caf\udce9.png"]


def test_a_store_out_of_reach_is_one_line(coma, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in {
        "ENDPOINT_URL": "http://127.0.0.1:9",
        "MAX_ATTEMPTS": "1",
        "EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    unknown = assert_one_line(coma("shard", "pets", "s3://some-bucket/out").err)
    assert "s3://some-bucket/out: " in unknown
    assert "credentials" in unknown
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    done = coma("shard", "pets", "s3://some-bucket/out")
    assert done.code == 1
    assert "http://127.0.0.1:9" in assert_one_line(done.err)
    s3fs.S3FileSystem.clear_instance_cache()


def test_folders_of_a_stores_console_are_empty_folders(coma, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "ENDPOINT_URL": address}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = boto3.client("s3", region_name="us-east-1")
    store.create_bucket(Bucket="console")
    for key in ("new/", "new/train/", "other/", "other/x.txt"):
        store.put_object(Bucket="console", Key=key, Body=b"")
    assert "_info.json cannot be read: no such file" in assert_one_line(coma("verify", "s3://console/new").err)
    assert "(it holds x.txt)" in assert_one_line(coma("shard", "pets", "s3://console/other").err)
    for words in ("shard pets s3://console/new --workers 1", "inspect s3://console/new", "verify s3://console/new"):
        done = coma(*words.split())
        assert done.code == 0, done.err
    assert "bucket" in assert_one_line(coma("verify", "s3://no-such-bucket/out").err)
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


COMA = f"{shlex.quote(sys.executable)} -m coma"


@pytest.mark.parametrize(
    ("code", "said", "line"),
    [
        (0, "", f"{COMA} inspect data --json >&-"),
        (0, "", f"{COMA} verify data <&- >&- 2>&-"),
        (141, "", f"{COMA} inspect data | true; exit ${{PIPESTATUS[0]}}"),
        (141, "", f"{COMA} verify data --json 2>&1 | true; exit ${{PIPESTATUS[0]}}"),
        (141, "", f"{COMA} --help | true; exit ${{PIPESTATUS[0]}}"),
        (141, "", f"{COMA} --version | true; exit ${{PIPESTATUS[0]}}"),
        (141, "", f"{COMA} bench loader --help 2>&1 | true; exit ${{PIPESTATUS[0]}}"),
        (141, "", f"{COMA} bench | true; exit ${{PIPESTATUS[0]}}"),
        (1, "error: stdout: No space left on device", f"{COMA} verify data > /dev/full"),
        (1, "error: stdout: No space left on device", f"{COMA} --help > /dev/full"),
        (0, "fingerprint", f"env -u TERM COLUMNS=0 {COMA} inspect data"),
        (1, "the current folder has been removed", f"mkdir gone; cd gone; rmdir ../gone; {COMA} inspect"),
        (2, "nonsense", f"COLUMNS=0 {COMA} nonsense"),
        (0, r"out-bl\xfc", f"PYTHONIOENCODING=ascii {COMA} shard pets out-bl\xfc --workers 1"),
    ],
)
def test_terminals_and_pipes(code: int, said: str, line: str) -> None:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_folders_that_may_not_be_read(place: Path, tmp_path: Path) -> None:
    """As someone other than root, whom permissions do not stop."""
    dropped = "--bounding-set=-dac_override,-dac_read_search"
    bare = [] if os.getuid() else ["setpriv", dropped, dropped.replace("bounding-set", "inh-caps")]
    if bare and (shutil.which("setpriv") is None or subprocess.run([*bare, "true"], check=False).returncode):
        pytest.skip("no way to be someone other than root")
    shutil.copytree(place / "data", tmp_path / "shut")
    (tmp_path / "shut/train").chmod(0)
    command = [*bare, sys.executable, "-m", "coma", "verify", str(tmp_path / "shut")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (tmp_path / "shut/train").chmod(0o755)
    assert done.returncode == 1
    assert "shut/train/manifest.parquet: Permission denied; " in assert_one_line(done.stderr)


def test_names_that_are_not_utf8(place: Path, tmp_path: Path, coma, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"caf\xe9")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "pets", name)
    out = f"{name}-shards"
    done = [
        coma("shard", name, out, "--workers", "1"),
        coma("shard", name, "--json"),
        coma("index", f"{out}/train", name + "x"),
    ]
    done += [coma("inspect", out, "--sheet", f"{name}.png"), coma("verify", out), coma("verify", name + "x")]
    assert [each.code for each in done] == [0] * len(done), done
    assert not CONTROLS.search("".join(each.out + each.err for each in done))
    assert json.loads(done[1].out)["out"] == out
    assert (tmp_path / f"{name}.png").is_file()


def planted(error: BaseException):
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_bug_is_one_line_and_its_traceback_a_file(coma, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("coma.shards.describe.describe.describe", planted(TypeError("planted\x1b")))
    done = coma("inspect", "data")
    assert done.code == 70
    line = assert_one_line(done.err)
    (saved,) = tmp_path.glob("coma-bug-*.txt")
    assert line.startswith(rf"error: this is a bug of coma: TypeError: planted\x1b (its traceback is in {saved}")
    assert "Traceback (most recent call last)" in saved.read_text()
    assert "in planted" not in saved.read_text()
    done = coma("--verbose", "inspect", "data")
    assert done.code == 70
    assert "Traceback (most recent call last)" in done.err


@pytest.mark.parametrize(
    ("code", "error"),
    [
        *(
            (1, MemoryError()),
            (1, RecursionError("deep")),
            (3, EOFError("early")),
            (1, BrokenPipeError(32, "Broken pipe")),
        ),
        *((1, OSError(116, "Stale file handle", "data")), (1, OSError(24, "Too many open files", "data"))),
    ],
)
def test_faults_that_need_a_machine_in_need(code: int, error: Exception, coma, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coma.shards.describe.describe.describe", planted(error))
    done = coma("inspect", "data")
    assert_one_line(done.err)
    assert done.code == code


def test_ctrl_c_ends_quietly(coma, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coma.shards.describe.describe.describe", planted(KeyboardInterrupt()))
    assert coma("inspect", "data") == (130, "", "")


HOSTILE = ("\x1b]0;owned\x07cat", "[red]x", "gpj.\u202eexe", "\nnew line", "c1\x9b31m", "a|b`c<i>", "zero\u200bwidth")


def test_names_from_data_command_no_terminal_and_no_reader(
    tmp_path: Path, coma, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_images(tmp_path / "pets", 2 * len(HOSTILE), classes=HOSTILE)
    for name in ("x.\x1b[2J", "y.\x1b[2J.jpg"):
        (tmp_path / "pets" / HOSTILE[0] / name).write_bytes(b"")
    done = [coma("shard", "pets", "out", "--workers", "1"), coma("inspect", "out"), coma("inspect", "out", "--json")]
    shard = next((tmp_path / "out/train").glob("*.tar"))
    shard.rename(shard.with_name("\x1b[2J.tar"))
    done += [coma("verify", "out"), coma("verify", "out", "--json"), coma("inspect", "out/\x1b[2J"), coma("\x1b[2J")]
    assert [each.code for each in done] == [0, 0, 0, 3, 3, 3, 2]
    assert not CONTROLS.search("".join(each.out + each.err for each in done))
    assert r"\x1b]0;owned\x07cat" in done[1].out
    assert "[red]x" in done[1].out
    assert r"\nnew line" in done[1].out
    shard.with_name("\x1b[2J.tar").rename(shard)
    assert sorted(read_manifest(tmp_path / "out").class_names or ()) == sorted(HOSTILE)
    card = (tmp_path / "out/README.md").read_text()
    assert not CONTROLS.search(card)
    features = yaml.safe_load(card.split("---\n")[1])["dataset_info"]["features"]
    names = next(each["dtype"]["class_label"]["names"] for each in features if each["name"] == "cls")
    assert sorted(names.values()) == sorted(HOSTILE)
