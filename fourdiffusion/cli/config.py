"""Compose one typed dataclass of a verb's schema, its config files and the words of a command line.

Only this module, overrides.py and launch.py import Hydra.
"""

import contextlib
import copy
import dataclasses
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fourdiffusion.cli.overrides import literal, remedy, translate
from fourdiffusion.cli.schema import groups, load_settings_class, root, settings, shipped
from fourdiffusion.documents import read_yaml
from fourdiffusion.errors import UserError
from fourdiffusion.renames import current_name

__all__ = ["Source", "build", "compose", "composed_job", "from_values", "hydra_of", "load_settings_class", "shipped"]

INSTALL = {"joblib": "pip install hydra-joblib-launcher", "submitit_local": "pip install hydra-submitit-launcher"}
INSTALL["submitit_slurm"] = INSTALL["submitit_local"]
Settings = TypeVar("Settings")


class VerbRepository(ConfigRepository):
    """The config files of one verb. To Hydra, KEY=VALUE is a choice of a file wherever configs/KEY is a folder; here a
    setting with the name of another verb's group (`render scene=runs/a`) stays a setting.
    """

    def __init__(self, search_path: ConfigSearchPath, values: set[str]) -> None:
        super().__init__(search_path)
        self.values = values

    def group_exists(self, config_path: str) -> bool:
        return config_path not in self.values and super().group_exists(config_path)

    def __deepcopy__(self, memo: dict[int, Any]) -> "VerbRepository":
        """Hydra copies the repository before it replaces its sources; they themselves never change."""
        return copy.copy(self)


def register_resolvers() -> None:
    """Register ${shipped:PATH}; each process that resolves a config does this once."""
    OmegaConf.register_new_resolver("shipped", lambda path: str(shipped(path)), replace=True)


@dataclasses.dataclass(frozen=True)
class Source:
    """The start of a composition: a verb's root file, or the settings of a run over it."""

    name: str  # of the verb's root file
    schema: type
    config_dir: Path | None = None  # a user's folder, beside configs/
    run: Path | None = None  # a run's config.yaml, or any other file of settings


@contextlib.contextmanager
def hydra_of(source: Source) -> Iterator[tuple[Hydra, str]]:
    """Yield Hydra's application object for one verb, and the name of its primary config.

    Hydra's own entry point, hydra.main, reports mistakes as several lines and exits; this is what it calls.
    """
    version.setbase("1.3")
    register_resolvers()
    store = ConfigStore.instance()
    stored = store.repo.get(f"{source.name}_schema.yaml")
    if stored is None or OmegaConf.get_type(stored.node) is not source.schema:
        store.store(name=f"{source.name}_schema", node=source.schema)
    primary = source.name
    if source.run is not None:
        primary = f"{source.name}_from_run"
        store.store(name=primary, node=_run_config(source, source.run))
    search_path = create_config_search_path(str(shipped("configs")))
    if source.config_dir is not None:
        if not source.config_dir.is_dir():
            raise UserError(f"--config-dir {source.config_dir}: there is no such folder")
        folder = f"file://{source.config_dir.resolve()}"
        search_path.prepend("command-line", folder, anchor=SearchPathQuery(provider="schema"))
    loader = ConfigLoaderImpl(search_path)
    chosen = {group.name for group in groups(source.name, source.config_dir)}
    loader.repository = VerbRepository(search_path, {each.key for each in settings(source.schema)} - chosen)
    hydra = Hydra(task_name=source.name, config_loader=loader)
    instance = GlobalHydra.instance()
    outer, instance.hydra = instance.hydra, None  # of a program that uses Hydra and calls the API
    instance.initialize(hydra)
    try:
        yield hydra, primary
    finally:
        instance.hydra = outer


def _run_config(source: Source, path: Path) -> dict[str, Any]:
    """Return a primary config with the settings in ``path`` over the verb's root file, and no experiment.

    ``path`` is the config.yaml of a run, whose text is literal, or a file of settings such as `--cfg job` prints.
    """
    if not path.exists():
        raise UserError(f"there is no file {path}: give --config-path RUN, the folder of a run")
    content = read_yaml(path, "give --config-path RUN, the folder of a run")
    is_run = isinstance(content, dict) and isinstance(content.get("settings"), dict)
    given = content["settings"] if is_run else content
    if not isinstance(given, dict):
        raise UserError(f"{path} holds no settings: give --config-path RUN, the folder of a run")
    leaves = {each.key: each for each in settings(source.schema)}
    node = root(source.name)
    for former, value in flat(given, leaves).items():
        key = former if former in leaves else current_name(source.schema.__name__, former)
        if key not in leaves:
            raise UserError(
                f"{path} holds '{former}', which is no setting of {source.name.replace('_', ' ')}: remove it"
            )
        leaves[key].check_flag(value)
        *parents, last = key.split(".")
        section = node
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = literal(value, set()) if is_run and isinstance(value, str) else value
    node["defaults"] = [{"experiment": None} if "experiment" in entry else entry for entry in node["defaults"]]
    return node


def flat(tree: dict[str, Any], leaves: Iterable[str] = (), prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of nested settings; a setting among ``leaves`` may itself be a dict."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        is_section = isinstance(value, dict) and key not in leaves
        found |= flat(value, leaves, f"{key}.") if is_section else {key: value}
    return found


def compose(name: str, schema: type, words: Iterable[str], config_dir: Path | None = None) -> DictConfig:
    """Compose schema, groups, configs/<name>.yaml, experiment and the words, each over the ones before.

    Values that the user must give may still be missing (see `build`). Raises UserError for a word that is not
    KEY=VALUE, an unknown key or option, a value of the wrong type or outside its range, and a YAML file that does not
    fit the schema.
    """
    source = Source(name, schema, config_dir)
    overrides = translate(list(words), schema, groups(name, config_dir), sweep=False)
    with hydra_of(source) as (hydra, primary):
        return composed_job(hydra, primary, overrides.words())


def composed_job(hydra: Hydra, primary: str, overrides: list[str]) -> DictConfig:
    """Compose the config of one job, without Hydra's own part."""
    with one_line_errors():
        config = hydra.compose_config(primary, overrides, run_mode=RunMode.RUN, with_log_configuration=False)
    with open_dict(config):
        del config["hydra"]
    return config


def build(config: DictConfig, settings_class: type[Settings]) -> Settings:
    """Return the composed settings as the verb's own dataclass.

    Raises UserError where a value is missing, an interpolation finds nothing, or a number lies outside its range.
    """
    check_complete(config)
    with one_line_errors():
        tree = OmegaConf.to_container(config, resolve=True)
    assert isinstance(tree, dict)
    leaves = {setting.key: setting for setting in settings(settings_class)}
    for key, value in flat(typing.cast(dict[str, Any], tree), leaves).items():
        leaves[key].check(value)
        *parents, last = key.split(".")
        section = typing.cast(dict[str, Any], tree)
        for parent in parents:
            section = section[parent]
        section[last] = leaves[key].expanded(value)
    return _instance(settings_class, typing.cast(dict[str, Any], tree))


def from_values(name: str, settings_class: type[Settings], values: dict[str, Any]) -> Settings:
    """Return a verb's settings: Python values over its config files, as `compose` lays words over them.

    Args:
        values: by name. A section of the settings is a dict, or its settings have dotted names; a group takes the name
            of an option (``experiment="paper"``).

    Raises ValueError for an unknown name, and a value of the wrong type or outside its range.
    """
    leaves = {each.key: each for each in settings(settings_class)}
    known = [*leaves, *(group.name for group in groups(name))]
    options = {key: value for key, value in values.items() if key in known and key not in leaves and _is_option(value)}
    given = flat({key: value for key, value in values.items() if key not in options}, leaves)
    if unknown := next((key for key in given if key not in leaves), None):
        raise ValueError(f"there is no setting '{unknown}': {remedy(unknown, known)}")
    try:
        composed = compose(name, settings_class, [f"{key}={value or 'null'}" for key, value in options.items()])
        for key, value in given.items():
            value = str(value) if isinstance(value, Path) else value
            leaves[key].check_flag(value)
            try:
                OmegaConf.update(composed, key, literal(value, None) if isinstance(value, str) else value, merge=False)
            except OmegaConfBaseException as error:
                raise ValueError(f"{key}={value!r}: expected {leaves[key].kind}") from error
        return build(composed, settings_class)
    except UserError as error:
        raise ValueError(str(error)) from error


def _is_option(value: Any) -> bool:
    return value is None or isinstance(value, str)


def missing_keys(config: DictConfig) -> set[str]:
    """Return the keys whose values the user must still give."""
    tree = OmegaConf.to_container(config, resolve=False)  # OmegaConf's own function resolves what may be missing
    assert isinstance(tree, dict)
    values = flat(typing.cast(dict[str, Any], tree))
    return {key for key, value in values.items() if value == MISSING and not key.startswith("hydra.")}


def check_complete(config: DictConfig, given: Iterable[str] = ()) -> None:
    """UserError where a value that the user must give is missing and not among ``given``."""
    if missing := sorted(missing_keys(config) - set(given)):
        raise UserError(f"a value is missing: add {' '.join(f'{key}=...' for key in missing)}")


def _instance(settings_class: type[Settings], tree: dict[str, Any]) -> Settings:
    """Return a dataclass from plain values, which OmegaConf has converted to their types."""
    types = typing.get_type_hints(settings_class)
    values = {}
    for field in dataclasses.fields(typing.cast(Any, settings_class)):
        of, value = types[field.name], tree[field.name]
        nested = isinstance(of, type) and dataclasses.is_dataclass(of)
        values[field.name] = _instance(of, value) if nested else value
    return settings_class(**values)


@contextlib.contextmanager
def one_line_errors(*others: type[BaseException]) -> Iterator[None]:
    """Turn the errors of Hydra and OmegaConf into UserErrors of one line, without their internal details.

    Hydra raises plain exceptions, too, for some mistakes in its own settings: ``others`` are these, where nothing else
    can raise them.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if not isinstance(error, (HydraException, OmegaConfBaseException, *others)):
            raise
        text = " ".join(re.split("full_key:|Config search path:", str(error))[0].split())
        missing = re.search(r"hydra/launcher/(\w+)", text)
        hint = f": {INSTALL[missing[1]]}" if missing and missing[1] in INSTALL else ""
        if "'experiment' not in" in text:
            hint = ": the file of an experiment begins with the line '# @package _global_'"
        raise UserError(text + hint) from error
