"""Settings come from where the docs say, and secrets among them stay secret."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stream.settings import Settings, SettingsError, effective, read_settings

SECRET = "a-secret-of-the-tests"
SASL = {"BROKER__SECURITY_PROTOCOL": "SASL_SSL", "BROKER__SASL_USERNAME": "worker"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    monkeypatch.chdir(tmp_path)

    def put(settings: dict[str, str]) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"DRIFTSTREAM_{name}", value)

    return put


def test_secrets_are_masked_where_settings_are_shown(environment: Callable[..., None]) -> None:
    environment(SASL | {"BROKER__SASL_PASSWORD": SECRET, "BROKER__KEY_PASSWORD": SECRET, "WEB__TOKEN": SECRET})
    settings = read_settings()
    shown = effective(settings)
    assert shown["broker"]["sasl_password"] == shown["broker"]["key_password"] == shown["web"]["token"] == "**********"
    assert SECRET not in json.dumps(shown) + repr(settings)
    assert settings.broker.librdkafka()["sasl.password"] == SECRET


def test_a_secret_may_be_a_file(environment: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/driftstream_broker__sasl_password").write_text(f"{SECRET}\n")
    (tmp_path / "secrets/of-another-program").write_text("x")
    (tmp_path / "driftstream.toml").write_text('[broker]\nsasl_password = "of the toml file"\ngroup = "shop"\n')
    environment(SASL | {"SECRETS": str(tmp_path / "secrets")})
    broker = read_settings().broker
    assert broker.sasl_password.get_secret_value() == SECRET
    assert (broker.group, broker.sasl_username) == ("shop", "worker")
    environment({"BROKER__SASL_PASSWORD": "of the environment"})
    assert read_settings().broker.sasl_password.get_secret_value() == "of the environment"


def test_a_folder_of_secrets_that_is_not_there_is_an_error(environment: Callable[..., None], tmp_path: Path) -> None:
    environment({"SECRETS": str(tmp_path / "nowhere")})
    with pytest.raises(SettingsError, match="nowhere"):
        read_settings()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"BROKER__SECURITY_PROTOCOL": "SASL_SSL"}, "sasl_username and sasl_password"),
        ({"BROKER__SECURITY_PROTOCOL": "TLS"}, "DRIFTSTREAM_BROKER__SECURITY_PROTOCOL"),
        ({"BROKER__CA_FILE": "nowhere.pem"}, "DRIFTSTREAM_BROKER__CA_FILE"),
        ({"BROKER__CERTIFICATE_FILE": __file__}, "certificate_file and key_file"),
        ({"BROKER__SASL_MECHANISM": "GSSAPI"}, "DRIFTSTREAM_BROKER__SASL_MECHANISM"),
        (SASL | {"BROKER__SASL_PASSWORD": SECRET, "BROKER__SASL_MECHANISM": "OAUTHBEARER"}, "oauth_token_url"),
        (
            SASL
            | {"BROKER__SASL_PASSWORD": SECRET, "BROKER__SASL_MECHANISM": "OAUTHBEARER"}
            | {"BROKER__OAUTH_TOKEN_URL": "http://login.example/token"},
            "https://",
        ),
        ({"WEB__TOKEN": "short-token"}, "DRIFTSTREAM_WEB__TOKEN"),
    ],
)
def test_what_does_not_make_sense_is_told_by_its_name_and_without_secrets(
    environment: Callable[..., None], change: dict[str, str], told: str
) -> None:
    environment(change)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert told in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "short-token" not in str(caught.value)


def test_the_readme_lists_every_setting_with_its_default() -> None:
    listed: dict[str, str] = {}
    for line in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) >= 4 and cells[0] in Settings.model_fields:
            listed |= {f"{cells[0]}.{name}": cells[2].strip("`") for name in cells[1].split(", ")}
    words = {"": "empty", "None": "none", "True": "true", "False": "false"}
    expected = {
        f"{group}.{name}": str(value) for group, values in effective(Settings()).items() for name, value in values.items()
    }
    expected = {name: words.get(value, value) for name, value in expected.items()}
    differing = {name for name in listed.keys() | expected.keys() if listed.get(name) != expected.get(name)}
    assert {name: (listed.get(name), expected.get(name)) for name in differing} == {}
