"""Settings of a server: who may do what, and what is refused."""

import sys

import pytest

from adrec import cli
from adrec.config import load_settings
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
