# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Weights are fetched whole and verified, or not at all, from a server that fails in every way."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scripts import download as downloading
from scripts.download import download
from scripts.errors import InputError
from scripts.weights import WeightFile, get_weights

ROOT = Path(__file__).resolve().parents[1]


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(50000.0)}, buffer)
    return buffer.getvalue()


CONTENT = checkpoint()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `CONTENT`.

    Attributes:
        lose: per connection, after how many bytes it is lost (0: all are sent); the last one repeats.
        ranges: whether the server knows them; code: of its answers, if not 200.
        asked: the `Range` headers of the requests.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lose, self.ranges, self.code = [0], True, 200
        self.body, self.asked = CONTENT, list[Any]()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/w.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:  # the library's name
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        lose = server.lose.pop(0) if len(server.lose) > 1 else server.lose[0]
        if server.code != 200:
            self.send_error(server.code)
            return
        begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0  # type: ignore[index]
        if begin and begin >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("Content-Length", str(len(server.body) - begin))
        self.end_headers()
        self.wfile.write(server.body[begin : begin + lose] if lose else server.body[begin:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloading.time, "sleep", lambda _: None)
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_file_is_fetched_and_verified(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "models" / "w.pth"
    assert download(server.url, target, size=len(CONTENT), sha256=SHA256.upper()) == SHA256
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["w.pth"]


def test_lost_connections_are_continued(server: Server, tmp_path: Path) -> None:
    server.lose = [1000, 70000, 0]
    download(server.url, tmp_path / "w.pth", sha256=SHA256)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=71000-"]


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.lose, server.ranges = [1000, 0], False
    download(server.url, tmp_path / "w.pth", sha256=SHA256)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_part_is_kept_for_the_next_call(server: Server, tmp_path: Path) -> None:
    server.lose = [5000, -1]
    with pytest.raises(InputError, match=r"was lost after 5000 bytes \(.*\); call again to continue"):
        download(server.url, tmp_path / "w.pth", sha256=SHA256, attempts=2)
    assert [file.name for file in tmp_path.iterdir()] == ["w.pth.part"]
    server.lose, server.asked = [0], []
    download(server.url, tmp_path / "w.pth", sha256=SHA256)
    assert server.asked == ["bytes=5000-"] and (tmp_path / "w.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("beyond", [0, 7])
def test_a_part_that_is_whole_or_too_long(beyond: int, server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(CONTENT + b"x" * beyond)
    download(server.url, tmp_path / "w.pth", sha256=SHA256)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_wrong_hash(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"sent a file with SHA-256 {SHA256}, expected 00ff; it was removed"):
        download(server.url, tmp_path / "w.pth", sha256="00ff")
    assert list(tmp_path.iterdir()) == []


def test_wrong_size(server: Server, tmp_path: Path) -> None:
    """A truncated file behind an honest-looking answer."""
    server.body = CONTENT[:900]
    with pytest.raises(InputError, match=f"sent 900 bytes, expected {len(CONTENT)}; the file was removed"):
        download(server.url, tmp_path / "w.pth", size=len(CONTENT))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (503, 3)])
def test_refused(code: int, requests: int, server: Server, tmp_path: Path) -> None:
    server.code = code
    with pytest.raises(InputError, match="was refused \\(404" if code == 404 else "was lost after 0 bytes"):
        download(server.url, tmp_path / "w.pth", attempts=3)
    assert len(server.asked) == requests


def test_no_server_and_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading.time, "sleep", lambda _: None)
    with pytest.raises(InputError, match="was lost after 0 bytes"):
        download("http://127.0.0.1:9/w.pth", tmp_path / "w.pth", attempts=2)
    with pytest.raises(InputError, match="expected an address that begins with https://"):
        download((ROOT / "README.md").as_uri(), tmp_path / "w.pth")


def registry(server: Server, **changes: Any) -> dict[str, Any]:
    entry = {"url": server.url, "file": "w.pth", "segmenter": "sam_vit_b", "licence": "L", "citation": "C"}
    return {"one": entry | changes}


def test_get_weights(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for requests in (1, 1):  # the second finds it there
        file = get_weights(registry(server, sha256=SHA256), "one", tmp_path, progress=False)
        assert file.read_bytes() == CONTENT and len(server.asked) == requests
        told = capsys.readouterr().out
        assert f"SHA-256 {SHA256} (verified)" in told and "configs/segmenters/sam_vit_b.yaml" in told
    get_weights(registry(server), "one", tmp_path / "other", progress=False)
    assert "UNVERIFIED: no published hash is known" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"has SHA-256 .* remove it and call again"):
        get_weights(registry(server, sha256="00"), "one", tmp_path)
    with pytest.raises(InputError, match=r"name: unknown 'two', expected one of \['one'\]"):
        get_weights(registry(server), "two", tmp_path)


def test_where_md5_alone_is_known(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    get_weights(registry(server, md5=right), "one", tmp_path, progress=False)
    assert "MD5 verified" in capsys.readouterr().out
    with pytest.raises(InputError, match=f"has MD5 {right}, expected 00; remove it and call again"):
        get_weights(registry(server, md5="00"), "one", tmp_path, progress=False)


def test_a_page_instead_of_weights(server: Server, tmp_path: Path) -> None:
    server.body = b"<html>Google Drive cannot scan this file</html>"
    with pytest.raises(InputError, match="did not send a PyTorch file"):
        get_weights(registry(server), "one", tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_nobody_offers(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name: no file of one is offered for download; train it"):
        get_weights(registry(server, url="", note="train it"), "one", tmp_path)


def test_the_registry_is_complete() -> None:
    config = yaml.safe_load((ROOT / "configs" / "weights.yaml").read_text(encoding="utf-8"))
    overlays = {path.stem for path in (ROOT / "configs" / "segmenters").glob("*.yaml")}
    entries = {name: WeightFile(**entry) for name, entry in config["registry"].items()}
    assert {entry.segmenter for entry in entries.values()} == overlays
    for entry in entries.values():
        assert entry.url.startswith("https://") or (entry.url == "" and "train it" in entry.note)
        assert entry.licence and entry.citation
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert entry.md5 is None or re.fullmatch("[0-9a-f]{32}", entry.md5)
    for overlay in overlays:  # each says how to fetch its weights
        text = (ROOT / "configs" / "segmenters" / f"{overlay}.yaml").read_text(encoding="utf-8")
        (named,) = re.findall(r"get_weights --name (\w+)", text)
        assert entries[named].segmenter == overlay


@pytest.mark.slow
def test_the_command(server: Server, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "monai.bundle", "run", "get_weights", "--config_file", "configs/weights.yaml"]
    options = ["--name", "sam_vit_b", "--output_dir", str(tmp_path), "--registry::sam_vit_b::url", server.url]
    options += ["--registry::sam_vit_b::size", str(len(CONTENT)), "--registry::sam_vit_b::sha256", SHA256]
    done = subprocess.run([*call, *options], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sam_vit_b_01ec64.pth").read_bytes() == CONTENT
    wrong = subprocess.run(
        [*call, "--name", "nothing"], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300, check=False
    )
    assert wrong.returncode != 0 and "promptreg: name: unknown 'nothing', expected one of" in wrong.stderr
