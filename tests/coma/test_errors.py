"""What other libraries raise, as errors of one line; bugs stay bugs."""

import errno
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coma.errors import ComaError, DataError, UsageError, fault_of, in_words


def raised(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "code",
    [
        *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE),
        *(errno.ENAMETOOLONG, errno.ESTALE, errno.ENOTDIR, errno.ELOOP, errno.EIO, errno.ECONNREFUSED),
    ],
)
def test_an_error_of_the_system_has_name_cause_and_way_out(code: int) -> None:
    fault = fault_of(OSError(code, os.strerror(code), "some/file"))
    assert fault is not None
    assert fault.exit_code == 1
    assert str(fault).startswith(f"some/file: {os.strerror(code)}; ")


def test_both_names_of_a_rename_are_told() -> None:
    assert in_words(OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b")).startswith("a: b: Invalid")


@pytest.mark.parametrize(
    "content", [b"PAR1 but no more", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 99, b""]
)
def test_a_damaged_parquet_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.parquet"
    path.write_bytes(content)
    fault = fault_of(raised(lambda: pq.read_table(path)))
    assert isinstance(fault, DataError)
    assert "\n" not in str(fault)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (raised(lambda: json.loads("{")), DataError),
        (raised(lambda: pickle.loads(b"not one")), DataError),
        (zipfile.BadZipFile("File is not a zip file"), DataError),
        (EOFError("Compressed file ended"), DataError),
        (raised(lambda: "\udce9".encode()), ComaError),
        (raised(lambda: b"\xe9".decode()), ComaError),
        (MemoryError(), ComaError),
        (RecursionError("maximum recursion depth exceeded"), ComaError),
        (ModuleNotFoundError("No module named 'timm'", name="timm"), ComaError),
        (UsageError("as it is"), UsageError),
    ],
)
def test_faults_of_the_world_are_told_from_bugs(error: BaseException, kind: type[ComaError]) -> None:
    assert type(fault_of(error)) is kind


def test_errors_of_stores_and_of_the_way_to_them() -> None:
    import aiohttp
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

    denied = ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "HeadObject")
    for error in (
        NoCredentialsError(),
        EndpointConnectionError(endpoint_url="http://x"),
        denied,
        aiohttp.ClientError(),
    ):
        fault = fault_of(error)
        assert fault is not None
        assert "credentials" in str(fault)


@pytest.mark.parametrize(
    "error",
    [
        *(TypeError("x"), AssertionError(), AttributeError("x"), KeyError("x"), ValueError("x"), IndexError("x")),
        *(RuntimeError("x"), pa.lib.ArrowTypeError("x"), ModuleNotFoundError("x", name="coma.nowhere")),
    ],
)
def test_bugs_stay_bugs(error: BaseException) -> None:
    assert fault_of(error) is None
