"""Settings of a server: who may do what, and what is refused."""

import sys

import pytest

from adrec import cli
from adrec.config import load_settings, parse_overrides
from adrec.errors import ConfigError
from adrec.serving.config import ServerConfig

TOKEN = "token-of-a-test-0123"
TOKENS = {"events_token": TOKEN, "admin_token": TOKEN}


def settings(**given):
    return load_settings(ServerConfig, None, given)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_on_this_machine_tokens_may_be_left_out(host):
    assert settings(host=host).events_token is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.5", "localhost.example"])
def test_others_need_both(host):
    with pytest.raises(ConfigError) as refused:
        settings(host=host)
    assert "set ADREC_EVENTS_TOKEN and ADREC_ADMIN_TOKEN in the environment" in str(refused.value)
    with pytest.raises(ConfigError, match="set ADREC_ADMIN_TOKEN in the environment") as refused:
        settings(host=host, events_token=TOKEN)
    assert TOKEN not in str(refused.value)
    settings(host=host, **TOKENS)
    settings(host=host, open=True)


def test_no_error_tells_a_secret(tmp_path):
    """Whatever is wrong with the settings."""
    file = tmp_path / "server.yaml"
    for text in (
        f"admin_token: {TOKEN}: x",
        f"admin_tokn: {TOKEN}",
        f"redis: [{TOKEN}]",
        f"events: [{TOKEN}]",
        f"admin_token: [{TOKEN}]",
        f"admin_token: *{TOKEN}",
        f"admin_token: !{TOKEN} x",
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as refused:
            load_settings(ServerConfig, file, {})
        assert TOKEN not in str(refused.value)
        assert "server.yaml" in str(refused.value)
    with pytest.raises(ConfigError, match=r"--set admin_token: .*not valid YAML") as refused:
        parse_overrides([f"admin_token={TOKEN}: b: c"])
    assert TOKEN not in str(refused.value)
    with pytest.raises(ConfigError, match="ADREC_ADMIN_TOKEN"):
        settings(admin_token="short")


def test_the_command_says_so(monkeypatch, capsys, tmp_path):
    for name in ("ADREC_EVENTS_TOKEN", "ADREC_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    command = ["adrec", "serve", str(tmp_path), "--host", "0.0.0.0"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "ADREC_EVENTS_TOKEN" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
