"""Raw files by URL: the bytes of local ones, streamed, with errors that name the URL."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import polars as pl
import pytest

from mlet.data import prepare
from mlet.data.compressed import read_chunks
from mlet.data.files import find_files
from mlet.data.guess import guess_schema
from mlet.data.readers import CriteoSource, TableSchema, TableSource
from mlet.data.remote import Url, as_url
from mlet.errors import DataError

SCHEMA = TableSchema(label="click", dense=["price"], categorical=["user", "day"])


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def write_partitions(folder: Path) -> None:
    """A CSV file, one packed and one Parquet file, in folders of days, and notes beside them."""
    for day, name in enumerate(("part.csv", "part.csv.gz", "part.parquet"), 1):
        place = folder / f"day={day}"
        place.mkdir(parents=True)
        rows = pl.DataFrame(
            {
                "click": [row % 2 for row in range(60)],
                "price": [float(row) for row in range(60)],
                "user": [f"u{row * day % 7}" for row in range(60)],
            }
        )
        if name.endswith("parquet"):
            rows.write_parquet(place / name)
        else:
            text = rows.write_csv().encode()
            (place / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    (folder / "_SUCCESS").write_text("")
    (folder / "day=2" / "_note.csv").write_text("none")
    (folder / "day=3" / "empty.csv").write_text("")


def test_a_bucket_gives_what_its_folder_does(
    tmp_path: Path, bucket: fsspec.AbstractFileSystem
) -> None:
    write_partitions(tmp_path / "logs")
    bucket.put(str(tmp_path / "logs"), "/bucket/logs", recursive=True)
    local = prepare(TableSource([tmp_path / "logs"], SCHEMA), tmp_path / "local")
    single = [f"memory://bucket/logs/day={day}/part.*" for day in (1, 2, 3)]
    for place, urls in enumerate(
        (["memory://bucket/logs"], ["memory://bucket/logs/*/part*"], single,
         ["memory://bucket/logs/day*"], [f"file://{tmp_path}/logs"])
    ):  # fmt: skip
        source = TableSource([Path(url) for url in urls], SCHEMA)
        remote = prepare(source, tmp_path / f"remote{place}")
        assert remote.checksums == local.checksums, urls
    first = find_files([Path("memory://bucket/logs")])[0]
    assert isinstance(first.path, Url)
    assert str(first.path) == "memory://bucket/logs/day=1/part.csv"
    assert guess_schema(Path("memory://bucket/logs/day=3/part.parquet")) == guess_schema(
        tmp_path / "logs" / "day=3" / "part.parquet"
    )


def test_days_of_criteo_in_a_bucket(
    tmp_path: Path, bucket: fsspec.AbstractFileSystem, criteo_sample: Path
) -> None:
    for day in (0, 2, 10):
        bucket.pipe(f"/b/day_{day}.gz", gzip.compress(criteo_sample.read_bytes()))
    source = CriteoSource([Path("memory://b/day_*")])
    assert source.description == "criteo: day_0.gz, day_2.gz, day_10.gz"
    assert prepare(source, tmp_path / "d").splits["valid"].rows == 500


def test_a_file_is_fetched_as_it_is_read(bucket: fsspec.AbstractFileSystem) -> None:
    fetched = []

    class Counted(fsspec.implementations.memory.MemoryFile):
        def read(self, size: int = -1) -> bytes:
            fetched.append(size)
            return super().read(size)

    bucket.store["/b/large"] = Counted(bucket, "/b/large", bytes(64 << 20))
    chunks = read_chunks(Path("memory://b/large"), 1 << 20)
    assert len(next(chunks)) == 1 << 20
    assert 0 < sum(fetched) <= 4 << 20, "of 64 MB"
    chunks.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://b/none.csv", "memory://b/none.csv: no such file"),
        ("memory://b/none*", r"memory://b/none\*: no file matches the pattern"),
        ("memory://b/empty", "memory://b/empty: the folder holds no files"),
        ("memory://b/cut.csv.gz", "memory://b/cut.csv.gz: the compressed file is cut short"),
        ("memory://b/bad.parquet", "memory://b/bad.parquet: damaged .*fetch it again"),
        ("ftpp://b/rows.csv", "ftpp://b/rows.csv: fsspec knows no ftpp://"),
        ("file:///none/rows.csv", "file:///none/rows.csv: no such file"),
        ("http://127.0.0.1:9/rows.csv", "http://127.0.0.1:9/rows.csv: "),
    ],
)
def test_errors_name_the_url(bucket: fsspec.AbstractFileSystem, url: str, message: str) -> None:
    bucket.pipe("/b/cut.csv.gz", gzip.compress(b"click,price\n" * 9_999)[:-20])
    bucket.pipe("/b/bad.parquet", b"PAR1 and no more of it PAR1")
    bucket.pipe("/b/empty/_SUCCESS", b"1")
    with pytest.raises(DataError, match=message):
        list(TableSource([Path(url)], SCHEMA).frames())


def test_a_missing_driver_and_refused_access(
    bucket: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    with monkeypatch.context() as patch:
        patch.setattr(fsspec.core, "url_to_fs", no_driver)
        with pytest.raises(DataError, match=r"^s3://b/x.csv: the driver for s3:// is missing; pip"):
            find_files([Path("s3://b/x.csv")])

    def no_access(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    bucket.pipe("/b/x.csv", b"click\n")
    monkeypatch.setattr(type(bucket), "_open", no_access)
    with pytest.raises(
        DataError, match=r"^memory://b/x.csv: no access \(Access Denied\); give the"
    ):
        list(TableSource([Path("memory://b/x.csv")], SCHEMA).frames())


def test_a_web_server(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="the driver of fsspec for http:// (the extra 'remote')")
    write_partitions(tmp_path)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def send_head(self) -> object:  # type: ignore[override]
            if self.path.endswith("refused.csv"):
                self.send_error(403)
                return None
            return super().send_head()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            root = f"http://127.0.0.1:{server.server_port}"
            names = ("day=1/part.csv", "day=2/part.csv.gz", "day=3/part.parquet")
            remote = [Path(f"{root}/{name}") for name in names]
            there = list(TableSource(remote, SCHEMA).frames())
            here = list(TableSource([tmp_path / name for name in names], SCHEMA).frames())
            assert pl.concat(there).equals(pl.concat(here))
            with pytest.raises(DataError, match=f"^{root}/none.csv: no such file"):
                list(TableSource([Path(f"{root}/none.csv")], SCHEMA).frames())
            with pytest.raises(
                DataError, match=f"^{root}/refused.csv: no access .*; give the cred"
            ):
                list(TableSource([Path(f"{root}/refused.csv")], SCHEMA).frames())
            with pytest.raises(DataError, match=r"http://127.0.0.1:9/x: cannot be read .*network"):
                list(TableSource([Path("http://127.0.0.1:9/x")], SCHEMA).frames())
        finally:
            server.shutdown()


def test_what_is_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("s3://b/a=1/x.csv", "https://h:80/x.csv?v=1", "file:///a/b", "gs://b"):
        assert str(as_url(Path(text))) == text
    for text in ("C:/rows.csv", "rows.csv", "/a:/b", "a/s3:/b"):
        assert as_url(Path(text)) is None
    (tmp_path / "s3:" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert as_url(Path("s3:/b")) is None, "a folder that is there is itself"
