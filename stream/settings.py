"""Every setting of the worker, in small frozen groups, from the environment and a TOML file.

`DRIFTSTREAM_WINDOW__SIZE=128` and `[window] size = 128` in the file name the same thing; the environment wins.
The file is `driftstream.toml` in the working directory, or the one that `DRIFTSTREAM_CONFIG` names. Secrets may also be files, as
Docker and Kubernetes mount them: in the folder that `DRIFTSTREAM_SECRETS` names, `driftstream_broker__sasl_password` for example.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings.exceptions import SettingsError as SettingsParseError

from stream.connection import Broker

Days = Annotated[float, Field(gt=0)]
Milliseconds = Annotated[int, Field(ge=0)]


class SettingsError(Exception):
    """A setting is missing, unknown or out of range; the message names it and where it came from."""


class Group(BaseModel):
    """A few settings that belong together; frozen, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Topics(Group):
    """Names and partition counts. `prefix` goes before every name, so that several systems can share a cluster."""

    prefix: str = ""
    searches: str = "searches"
    clicks: str = "clicks"
    items: str = "items"
    erasures: str = "erasures"
    recommendations: str = "recommendations"
    drift: str = "drift"
    dead_letters: str = "dead-letters"
    memory: str = "memory"
    partitions: Annotated[int, Field(ge=1)] = 4
    replication: Annotated[int, Field(ge=1)] = 1

    def name(self, topic: str) -> str:
        """Return a topic's full name: `name("dead_letters")` is prefix and setting together."""
        return f"{self.prefix}{getattr(self, topic)}"


class Window(Group):
    """How much of a user's behaviour is remembered event by event."""

    size: Annotated[int, Field(ge=1, le=4096)] = 64
    days: Days = 30.0


class Profile(Group):
    """The decayed sums: one per half-life, shortest first."""

    half_lives_days: Annotated[tuple[Days, ...], Field(min_length=1, max_length=16)] = (0.25, 3.0, 30.0)
    search_weight: Annotated[float, Field(ge=0)] = 0.5
    click_weight: Annotated[float, Field(ge=0)] = 1.0

    @cached_property
    def half_lives_ms(self) -> NDArray[np.float64]:
        """The half-lives in ms, shape (K,)."""
        return np.array(self.half_lives_days) * 86_400_000.0


class Drift(Group):
    """When a user's interest counts as drifting, and as shifted: see `stream/drift.py` for the formula.

    Half-lives and warm-up are counted in behaviours. `alarm`, `shifted` and `calm` are levels of the CUSUM: drifting begins at the
    first, counts as a shift at the second, and is over at the third.
    """

    short_half_life: Annotated[float, Field(gt=0)] = 6.0
    long_half_life: Annotated[float, Field(gt=0)] = 60.0
    warm_up: Annotated[int, Field(ge=2, le=255)] = 10
    reference: Annotated[float, Field(ge=0, le=2)] = 0.65
    memory: Annotated[float, Field(gt=0, le=1)] = 0.9
    slack: Annotated[float, Field(gt=0)] = 0.15
    relative_weight: Annotated[float, Field(ge=0)] = 0.2
    alarm: Annotated[float, Field(gt=0)] = 1.45
    shifted: Annotated[float, Field(gt=0)] = 2.2
    calm: Annotated[float, Field(ge=0)] = 0.4


class Recommend(Group):
    """What a recommendation is made of."""

    count: Annotated[int, Field(ge=1, le=1000)] = 10
    emit: Literal["every-event", "latest-per-user"] = "every-event"

    popularity_half_life_days: Days = 3.0
    query_half_life_days: Days = 7.0
    followed_half_life_days: Days = 30.0
    memory_keys: Annotated[int, Field(ge=1)] = 100_000  # of items, of queries and of items clicked before, each
    memory_items_per_key: Annotated[int, Field(ge=1)] = 100
    previous_clicks: Annotated[int, Field(ge=0)] = 3  # of the user, that the next one is learned to follow
    neighbours: Annotated[int, Field(ge=1)] = 16  # similar queries that are asked
    neighbour_sharpness: Annotated[float, Field(gt=0)] = 10.0
    exact_items: Annotated[int, Field(ge=0)] = (
        1500  # up to so many, every answer scores them all; beyond, those that an index proposes
    )

    # The ranker's weights: stream/recommend/ranker.py has the formula.
    text_weight: float = 8.0
    coverage_weight: float = 8.0
    profile_weight: float = 2.0
    profile_shares: list[Annotated[float, Field(ge=0)]] = []  # of each time scale in the profile; none given: equal ones
    popular_prior: Annotated[float, Field(gt=0)] = 1.0
    similar_prior: Annotated[float, Field(gt=0)] = 0.5
    query_prior: Annotated[float, Field(gt=0)] = 1.0
    followed_prior: Annotated[float, Field(gt=0)] = 2.0
    repeat: Annotated[float, Field(ge=0)] = 0.1


class Model(Group):
    """The encoder that `model-export` made, and where it runs."""

    folder: Path = Path("models/default")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    variant: Literal["auto", "fp32", "int8", "fp16"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    cache_size: Annotated[int, Field(ge=0)] = 100_000


class Engine(Group):
    """How the worker reads, keeps state and checkpoints."""

    guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"
    worker_id: str = ""
    state_folder: Path = Path("state")
    stuck_after_s: Annotated[float, Field(gt=0)] = 300.0
    batch_ms: Annotated[int, Field(ge=1)] = 1000
    batch_size: Annotated[int, Field(ge=1)] = 65_536
    buffer: Annotated[int, Field(ge=1)] = 65_536
    order_wait_ms: Milliseconds = 5
    backlog_wait_ms: Milliseconds = 3000
    states_in_memory: Annotated[int, Field(ge=1)] = 20_000
    rocksdb_mb: Annotated[int, Field(ge=8)] = 160


class Web(Group):
    """The worker's HTTP endpoints: liveness, readiness, metrics, profiles; the last only for those who know the token."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 6066
    token: Annotated[SecretStr, Field(min_length=16)] | None = None


class Settings(BaseSettings):
    """All of it. `Settings()` reads the environment and the file; keyword arguments win over both."""

    model_config = SettingsConfigDict(env_prefix="DRIFTSTREAM_", env_nested_delimiter="__", frozen=True, extra="forbid")

    broker: Broker = Broker()
    topics: Topics = Topics()
    window: Window = Window()
    profile: Profile = Profile()
    drift: Drift = Drift()
    recommend: Recommend = Recommend()
    model: Model = Model()
    engine: Engine = Engine()
    web: Web = Web()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then the files of secrets, then the TOML file."""
        path = Path(os.environ.get("DRIFTSTREAM_CONFIG", "driftstream.toml"))
        secrets = NestedSecretsSettingsSource(
            file_secret_settings, secrets_dir=os.environ.get("DRIFTSTREAM_SECRETS"), secrets_dir_missing="error"
        )
        return init_settings, env_settings, secrets, TomlConfigSettingsSource(settings_cls, toml_file=path)


def read_settings(changes: Mapping[str, Any] = MappingProxyType({})) -> Settings:
    """Read the settings from the environment and the file.

    Args:
        changes: settings by group, as in a file; they win over both.

    Raises:
        SettingsError: naming each setting at fault as it is spelt in the environment and in the file.
    """
    known = {f"DRIFTSTREAM_{name.upper()}" for name in Settings.model_fields} | {"DRIFTSTREAM_CONFIG", "DRIFTSTREAM_SECRETS"}
    strangers = [name for name in os.environ if name.startswith("DRIFTSTREAM_") and name.split("__")[0] not in known]
    if strangers:
        raise SettingsError(f"{strangers[0]}: no such setting; the groups are {', '.join(Settings.model_fields)}")
    path = Path(os.environ.get("DRIFTSTREAM_CONFIG", "driftstream.toml"))
    if "DRIFTSTREAM_CONFIG" in os.environ and not path.is_file():
        raise SettingsError(f"DRIFTSTREAM_CONFIG names {path}, which is not a file")
    try:
        return Settings(**changes)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            name = [str(part) for part in fault["loc"]]
            faults.append(f"DRIFTSTREAM_{'__'.join(name).upper()} ({'.'.join(name)} in {path}): {fault['msg']}")
        raise SettingsError("; ".join(faults)) from error
    except (ValueError, SettingsParseError) as error:
        raise SettingsError(f"{path}: {error}") from error


def effective(settings: Settings) -> dict[str, Any]:
    """Return every setting as plain values, secrets masked, for printing."""
    return settings.model_dump(mode="json")
