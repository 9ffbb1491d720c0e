"""Run a verb through Hydra: one job, a sweep of jobs through a launcher, or print the config instead."""

import argparse
import contextlib
import importlib
import io
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf

from fourdiffusion.cli.config import Source, build, check_complete, hydra_of, one_line_errors, register_resolvers
from fourdiffusion.cli.mistakes import mistake, safe_streams
from fourdiffusion.cli.overrides import Overrides, quoted, translate
from fourdiffusion.cli.schema import groups, load_settings_class, settings
from fourdiffusion.errors import UserError

# Makes the outputs of a sweep's jobs differ whatever is swept.
OWN_TO_A_JOB = re.compile(r"\$\{hydra:(job\.(num|id)|runtime\.output_dir)\}")


@dataclass(frozen=True)
class Task:
    """A verb's function and settings by name, which a launcher can send to other processes."""

    module: str
    function: str
    settings: str

    def __call__(self, composed: DictConfig) -> Any:
        """Run one job; Hydra calls this. A mistake of the user's is returned as a Failure."""
        safe_streams()
        register_resolvers()
        try:
            settings_object: Any = build(composed, load_settings_class(self.settings))
            return getattr(importlib.import_module(self.module), self.function)(settings_object)
        except Exception as error:
            in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
            text = mistake(error)
            if in_sweep and (text is None or os.environ.get("HYDRA_FULL_ERROR")):
                raise  # Hydra prints it
            if in_sweep:
                print(f"error: job {HydraConfig.get().job.num}: {text}", file=sys.stderr, flush=True)
                return Failure(UserError(text))
            return Failure(error)


@dataclass(frozen=True)
class Failure:
    """The return value of a job that failed: Hydra would print lines of its own for an exception."""

    error: Exception


def run(task: Task, words: list[str], warn: Any) -> None:
    """Run a verb, or show its config, as the flags among the words say. ``warn`` is called with a line of text."""
    flags = parse_flags(words)
    schema = load_settings_class(task.settings)
    source = source_of(task.function, schema, flags)
    is_sweep = flags.multirun or any(re.fullmatch(r"hydra\.mode=MULTIRUN", word) for word in flags.overrides)
    overrides = translate(flags.overrides, schema, groups(source.name, source.config_dir), sweep=is_sweep)
    if overrides.renamed:
        warn(", ".join(f"{former} is now {key}" for former, key in overrides.renamed.items()))
    with hydra_of(source) as (hydra, primary):
        if flags.hydra_help:
            hydra.hydra_help(config_name=primary, args_parser=get_args_parser(), args=flags)
        elif flags.info is not None:
            logging.raiseExceptions = False  # it is written by the logger, whose reader may leave
            hydra.show_info(flags.info, config_name=primary, overrides=overrides.words())
        elif flags.cfg is not None:
            try:
                with one_line_errors(Exception), contextlib.redirect_stderr(io.StringIO()):
                    hydra.show_cfg(primary, overrides.words(), flags.cfg, flags.package, flags.resolve)
            except SystemExit as error:
                raise UserError(f"--package={flags.package}: the config has no such part") from error
        elif is_sweep:
            _run_sweep(hydra, primary, task, schema, overrides)
        else:
            with one_line_errors(Exception):  # of Hydra's own: the job returns its error
                job = hydra.run(primary, task, ["hydra.mode=RUN", *overrides.words()])
            if isinstance(job.return_value, Failure):
                raise job.return_value.error


def parse_flags(words: list[str]) -> argparse.Namespace:
    """Return Hydra's own flags and, as ``overrides``, the other words. UserError for a flag that is none."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{message}: --hydra-help lists the flags")

    parser = Parser(add_help=False, parents=[get_args_parser()], conflict_handler="resolve", allow_abbrev=False)
    flags, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        key, _, value = unknown[0].lstrip("-").partition("=")
        raise UserError(f"'{unknown[0]}' is not a setting: write KEY=VALUE, for example {key}={value or '...'}")
    if flags.shell_completion or flags.experimental_rerun:
        raise UserError("--shell-completion and --experimental-rerun are not there: --config-path RUN repeats a run")
    asked = [flags.run, flags.multirun, flags.cfg is not None, flags.info is not None]
    if sum(asked) > 1:
        raise UserError("give one of --run, --multirun, --cfg and --info")
    return flags


def source_of(name: str, schema: type, flags: argparse.Namespace) -> Source:
    """Return where composition begins: --config-dir adds a folder, --config-path and --config-name a run's settings."""
    run = None
    if flags.config_path is not None:
        run = Path(flags.config_path)
        if run.is_dir() or flags.config_name is not None:
            run /= f"{(flags.config_name or 'config').removesuffix('.yaml')}.yaml"
    elif flags.config_name is not None:
        raise UserError(f"--config-name {flags.config_name} goes with --config-path FOLDER")
    return Source(name, schema, Path(flags.config_dir) if flags.config_dir is not None else None, run)


# ---- sweeps ---------------------------------------------------------------------------------------------------------


def _run_sweep(hydra: Hydra, primary: str, task: Task, schema: type, overrides: Overrides) -> None:
    """Run every job. UserError where one failed: the others ran, and each failure was printed when it happened."""
    words = ["hydra.mode=MULTIRUN", *_separate_outputs(hydra, primary, task.function, schema, overrides)]
    with one_line_errors():
        batches = hydra.multirun(primary, task, words)
    jobs = [job for batch in batches or [] for job in batch if isinstance(job, JobReturn)]
    failed = sum(isinstance(job.return_value, Failure) for job in jobs)
    if failed:
        raise UserError(f"{failed} of {len(jobs)} jobs failed, see above")


def _separate_outputs(hydra: Hydra, primary: str, name: str, schema: type, overrides: Overrides) -> list[str]:
    """Return the overrides with an output for each job: OUTPUT/0, OUTPUT/1 and so on, unless they differ already."""
    with one_line_errors(Exception):
        plain = overrides.words(without_sweeps=True)
        config = hydra.compose_config(primary, plain, run_mode=RunMode.RUN, with_log_configuration=False)
    swept = overrides.swept()
    check_complete(config, given=swept)
    words = overrides.words()
    if "output" not in {setting.key for setting in settings(schema)}:
        return words
    if "output" in swept and swept["output"].is_sweep:
        raise UserError(f"{swept['output']}: write the outputs as a list, output=a,b")
    outputs = swept["output"].values if "output" in swept else [_unresolved(config, "output") or ""]
    sweeper = config.hydra.sweeper
    only_words_sweep = "basic_sweeper" in sweeper._target_ and not sweeper.get("params")
    if all(OWN_TO_A_JOB.search(output) for output in outputs):
        return words
    if only_words_sweep and swept and _differ(outputs, overrides, schema):
        return words
    if "output" in swept:
        values = [f"{output[:-1]}/${{hydra:job.num}}'" for output in outputs]  # inside the quotes
        numbered = f"output={','.join(values)}"
        return [numbered if word.startswith("output=") else word for word in words]
    folder = outputs[0] or f"runs/{name}"
    words = [word for word in words if not word.startswith("output=")]
    return [f"hydra.sweep.dir={quoted(folder)}", *words, "output=" + quoted(f"{folder}/${{hydra:job.num}}")]


def _differ(outputs: list[str], overrides: Overrides, schema: type) -> bool:
    """Return whether no two jobs share an output: nothing else is swept, or the output names everything that is.

    Where no output is given, it is the folder of the input, the verb's first setting.
    """
    swept = overrides.swept()
    if any(word.is_sweep or len(set(word.values)) < len(word.values) for word in swept.values()):
        return False
    first = next(settings(schema)).key
    if swept.keys() == {"output"} or (outputs == [""] and swept.keys() == {first}):
        return True
    return "output" not in swept and all(f"${{{key}}}" in outputs[0] for key in swept)


def _unresolved(config: DictConfig, key: str) -> str | None:
    value = OmegaConf.to_container(config, resolve=False)
    assert isinstance(value, dict)
    return None if value[key] in (None, MISSING) else str(value[key])
