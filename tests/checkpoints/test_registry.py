"""Downloads, against a local server that behaves well or badly."""

import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests_support import DATA

from dpa3sim.checkpoints import registry
from dpa3sim.checkpoints.registry import REGISTRY, RegistryModel, find_entry, load_model, pull
from dpa3sim.cli.main import main
from dpa3sim.common.errors import CheckpointError, DownloadError

CONTENT = (DATA / "models/dynamic/model.pt").read_bytes()
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Each path is a way to answer; ``server.log`` keeps (path, Range header)."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.log.append((self.path, self.headers.get("Range")))
        getattr(self, "answer_" + self.path.strip("/"))()

    def log_message(self, *args):
        pass

    def _send(self, body, status=200, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _start(self):
        match = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        return int(match.group(1)) if match else 0

    def answer_good(self):
        start = self._start()
        if start:
            where = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
            self._send(CONTENT[start:], 206, Content_Range=where)
        else:
            self._send(CONTENT)

    def answer_noresume(self):
        self._send(CONTENT)

    def answer_missing(self):
        self._send(b"not here", 404)

    def answer_wrong(self):
        self._send(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))

    def answer_other(self):
        self._send(b"<html>please log in</html>")

    def answer_truncated(self):
        """Breaks the connection after a third of what is left."""
        start = self._start()
        rest = CONTENT[start:]
        where = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        headers = {"Content_Range": where} if start else {}
        self._send(rest[: len(rest) // 3], 206 if start else 200, len(rest), **headers)
        self.close_connection = True

    def answer_slow(self):
        """A byte now and then: slow, but alive."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        for piece in (CONTENT[:7], CONTENT[7:90], CONTENT[90:]):
            time.sleep(0.15)
            self.wfile.write(piece)
            self.wfile.flush()

    def answer_stalled(self):
        """Begins and then says nothing more."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:1000])
        self.wfile.flush()
        self.server.release.wait(10)
        self.close_connection = True


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.log, httpd.release = [], threading.Event()
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield httpd
    httpd.release.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(registry.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry_for(server, *answers, size=SIZE, sha256=SHA256):
    urls = tuple(f"http://127.0.0.1:{server.server_port}/{a}" for a in answers)
    return RegistryModel("test-model", "test.pt", urls, size, sha256, "", "")


def test_good_download(server, cache):
    seen = []
    path = pull(entry_for(server, "good"), progress=lambda done, total: seen.append((done, total)))
    assert path == cache / "test.pt"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in cache.iterdir()] == ["test.pt"]


def test_second_pull_downloads_nothing(server):
    entry = entry_for(server, "good")
    pull(entry)
    pull(entry)
    assert len(server.log) == 1


def test_damaged_file_in_the_cache_is_fetched_again(server, cache):
    cache.mkdir()
    (cache / "test.pt").write_bytes(b"junk")
    assert pull(entry_for(server, "good")).read_bytes() == CONTENT


def test_broken_connection_is_resumed(server):
    path = pull(entry_for(server, "truncated", "good"))
    assert path.read_bytes() == CONTENT
    ranges = [r for _, r in server.log]
    assert ranges[0] is None
    assert all(r is not None for r in ranges[1:])  # each goes on where the last one broke
    assert server.log[-1][0] == "/good"


def test_interrupted_download_is_resumed_by_the_next_call(server, cache):
    cache.mkdir()
    (cache / "test.pt.part").write_bytes(CONTENT[:5000])
    assert pull(entry_for(server, "good")).read_bytes() == CONTENT
    assert server.log == [("/good", "bytes=5000-")]


def test_server_that_cannot_resume_starts_again(server, cache):
    cache.mkdir()
    (cache / "test.pt.part").write_bytes(b"x" * 5000)
    assert pull(entry_for(server, "noresume")).read_bytes() == CONTENT


def test_junk_from_another_attempt_is_dropped(server, cache):
    """A part that does not belong to the file fails the checksum, and the next mirror is used."""
    cache.mkdir()
    (cache / "test.pt.part").write_bytes(b"x" * 5000)
    assert pull(entry_for(server, "good", "good")).read_bytes() == CONTENT


def test_part_longer_than_the_file(server, cache):
    cache.mkdir()
    (cache / "test.pt.part").write_bytes(b"x" * (len(CONTENT) + 5))
    assert pull(entry_for(server, "good")).read_bytes() == CONTENT


@pytest.mark.parametrize("answers", [("truncated",), ("truncated", "truncated")])
def test_truncated_download_never_gets_the_final_name(server, cache, answers):
    with pytest.raises(DownloadError, match="broke after"):
        pull(entry_for(server, *answers))
    assert not (cache / "test.pt").exists()


def test_wrong_content_is_refused(server, cache):
    with pytest.raises(DownloadError, match="wrong content: SHA-256"):
        pull(entry_for(server, "wrong"))
    assert list(cache.iterdir()) == []


def test_login_page_instead_of_the_file(server, cache):
    with pytest.raises(DownloadError, match="26 bytes, not"):
        pull(entry_for(server, "other"))
    with pytest.raises(DownloadError, match="wrong content"):
        pull(entry_for(server, "other", size=None))
    assert not (cache / "test.pt").exists()


def test_missing_file_moves_on_to_the_next_mirror(server):
    assert pull(entry_for(server, "missing", "good")).read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="HTTP status 404"):
        pull(RegistryModel("x", "y.pt", entry_for(server, "missing").urls, None, SHA256, "", ""))


def test_slow_server_is_waited_for(server):
    assert pull(entry_for(server, "slow"), timeout=2.0).read_bytes() == CONTENT


def test_stalled_server_is_given_up(server):
    entry = entry_for(server, "stalled", "good")
    start = time.monotonic()
    assert pull(entry, timeout=0.3).read_bytes() == CONTENT
    assert time.monotonic() - start < 8
    assert server.log[-1] == ("/good", "bytes=1000-")  # what came was kept


def test_no_server():
    entry = RegistryModel("x", "x.pt", ("http://127.0.0.1:9/x",), None, SHA256, "", "")
    with pytest.raises(DownloadError, match="refused"):
        pull(entry)


def test_model_without_checksum_needs_consent(server):
    entry = entry_for(server, "good", sha256=None)
    with pytest.raises(DownloadError, match="--allow-unverified"):
        pull(entry)
    assert server.log == []
    pull(entry, sha256=SHA256.upper())
    assert pull(entry, allow_unverified=True).read_bytes() == CONTENT


def test_pull_then_use_by_name(server, monkeypatch, capsys):
    entry = entry_for(server, "good")
    monkeypatch.setattr(registry, "REGISTRY", (*REGISTRY, entry))
    with pytest.raises(CheckpointError, match="dpa3sim model pull test-model"):
        load_model("test-model")
    assert main(["model", "pull", "test-model"]) == 0
    assert "verified" in capsys.readouterr().out
    assert load_model("TEST-MODEL").name == "test-model"


def test_failed_pull_is_one_clear_message(server, monkeypatch, capsys):
    monkeypatch.setattr(registry, "REGISTRY", (entry_for(server, "missing"),))
    assert main(["model", "pull", "test-model"]) == 2
    err = capsys.readouterr().err
    assert "HTTP status 404" in err
    assert "Traceback" not in err


def test_registry_is_complete_and_consistent():
    names = [n.lower() for e in REGISTRY for n in (e.name, *e.aliases)]
    assert len(set(names)) == len(names)
    assert len({e.filename for e in REGISTRY}) == len(REGISTRY)
    for entry in REGISTRY:
        assert len(entry.urls) >= 2
        assert all(u.startswith("https://") for u in entry.urls)
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert find_entry(entry.name.upper()) is entry
    assert {e.name for e in REGISTRY} >= {"DPA-3.1-3M", "DPA-3.2-5M", "DPA-3.3-1M"}


def test_the_default_model_needs_no_network():
    model = load_model()
    assert model.name == "dpa3-openlam"
    assert model.head == "MP_traj_v024_alldata_mixu"
    assert load_model("dpa3-v2-openlam").sha256 == model.sha256
    assert len(model.elements) == 89
    assert model.untrained_types[:5] == ("Po", "At", "Rn", "Fr", "Ra")


def test_unknown_names(capsys):
    with pytest.raises(CheckpointError, match="known names: dpa3-openlam"):
        load_model("dpa5")
    assert main(["model", "pull", "DPA-3.1-4M"]) == 2
    assert "did you mean 'DPA-3.1-3M'" in capsys.readouterr().err


def test_list(capsys):
    assert main(["model", "list"]) == 0
    out = capsys.readouterr().out
    assert "dpa3-openlam (default)" in out
    assert "no checksum published" in out
