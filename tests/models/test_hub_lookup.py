"""Bases on the hub, without a network: the cache, and a hub on loopback."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants

from llm_adapters_lab.errors import ModelUnavailable
from llm_adapters_lab.models import hub
from llm_adapters_lab.models.blueprint import Blueprint

ANSWERS = {"me/there": (200, {}), "me/gated": (403, {"X-Error-Code": "GatedRepo"})}
ANSWERS |= {"me/files": (404, {"X-Error-Code": "EntryNotFound"}), "me/broken": (500, {})}
MISSING = (401, {"X-Error-Code": "RepoNotFound"})


class Hub(BaseHTTPRequestHandler):
    asked = 0

    def do_HEAD(self):
        type(self).asked += 1
        code, headers = ANSWERS.get("/".join(self.path.split("/")[1:3]), MISSING)
        self.send_response(code)
        for name, value in {"Content-Length": "2", "ETag": '"x"', "X-Repo-Commit": "c" * 40, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def online(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    site = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, site)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", site)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    Hub.asked = 0
    huggingface_hub.close_session()  # its client was made while the hub was off
    yield
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def add(name, config):
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        commit = "c" * 40
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text(config)

    return add


def test_the_hub_is_asked_once(online):
    assert hub.require_model("me/there") and Hub.asked == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("me/doesnotexist", "There is no model me/doesnotexist"),
        ("me/gated", "accept its terms at"),
        ("me/files", "has no config.json"),
        ("me/broken", "does not answer"),
        ("a--b/c..d", "is no hub id"),
    ],
)
def test_what_cannot_be_had_is_told_after_one_request(online, name, words):
    with pytest.raises(ModelUnavailable, match=words):
        hub.require_model(name)
    assert Hub.asked <= 1


def test_a_model_in_the_cache_needs_no_hub(cache):
    cache("me/small", json.dumps({"num_hidden_layers": 3}))
    cache("me/broken", "{")
    assert hub.cached_models() == ["me/small"] and hub.cached_config("me/small") == {"num_hidden_layers": 3}
    assert hub.require_model("me/small") is False
    with pytest.raises(ModelUnavailable, match="me/other is not on this machine"):
        hub.require_model("me/other")


def test_the_hub_is_switched_off_for_a_while(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ZeroDivisionError), hub.offline():
        assert constants.is_offline_mode()
        raise ZeroDivisionError
    assert not constants.is_offline_mode()


def test_no_cache_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert hub.cached_models() == [] and hub.cached_config("../x") == {}


def test_a_random_model_is_not_looked_for():
    assert Blueprint("tiny:llama").source == ("tiny:llama", {})
