"""The words of a command line as Hydra's overrides: KEY=VALUE, each checked against the schema before Hydra sees it.

Text is quoted for Hydra's grammar here, so that file names and prompts arrive as they stand. What Hydra's users know
goes to Hydra as it is: `hydra.*` and `hydra/*`, lists, and with --multirun sweeps (a,b  choice()  range()  glob()).
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from omegaconf.grammar_parser import parse

from fourdiffusion.cli.schema import Group, Setting, settings
from fourdiffusion.documents import read_yaml
from fourdiffusion.errors import UserError
from fourdiffusion.renames import current_name

EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false"}
RESOLVERS = {"hydra", "now", "shipped"}  # beside those that OmegaConf brings, of which oc.env is the useful one
SWEEP_FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)\s*$", re.DOTALL)


@dataclass
class Word:
    """One override: a key and its values in Hydra's grammar. More than one value is a sweep."""

    key: str
    values: list[str]
    is_sweep: bool = False  # by a function, as in range(0,3)

    def __str__(self) -> str:
        return f"{self.key}={','.join(self.values)}" if self.values else self.key


@dataclass
class Overrides:
    """The overrides of one command line; the former names among its keys, each with its present name."""

    entries: list[Word] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)

    def words(self, without_sweeps: bool = False) -> list[str]:
        """Return them as Hydra takes them."""
        swept = self.swept() if without_sweeps else {}
        return [str(entry) for entry in self.entries if entry.key not in swept]

    def swept(self) -> dict[str, Word]:
        """Return the overrides with several values, by key."""
        return {entry.key: entry for entry in self.entries if entry.is_sweep or len(entry.values) > 1}


def translate(words: list[str], schema: type, groups: Iterable[Group], sweep: bool) -> Overrides:
    """Return the overrides that KEY=VALUE words stand for.

    Raises UserError for a word that is not KEY=VALUE, an unknown key or option, and a value of the wrong type or
    outside its range. Several values for a setting are a mistake without ``sweep``.
    """
    sections = {group.name: group for group in groups}
    leaves = {setting.key: setting for setting in settings(schema)}
    result = Overrides()
    for number, word in enumerate(words):
        key, equals, text = word.partition("=")
        if re.match(r"[+~]*hydra[./]", key):
            result.entries.append(Word(key, [text] if equals else []))
            continue
        if equals and key not in leaves and key not in sections and current_name(schema.__name__, key) in leaves:
            result.renamed[key] = key = current_name(schema.__name__, key)
        if not equals or key.startswith("-"):
            raise UserError(_not_a_setting(words, number, leaves))
        if key in sections:
            pieces = _pieces(text) if sweep else [text]
            result.entries.append(Word(key, [_option(sections[key], piece) for piece in pieces]))
        elif key not in leaves:
            raise UserError(f"there is no setting '{key}': {remedy(key, [*leaves, *sections])}")
        elif leaves[key].is_text:
            result.entries.append(_text_word(leaves[key], text, set(leaves), sweep))
        else:
            result.entries.append(_value_word(leaves[key], text, schema, sweep))
    return result


def literal(text: str, keys: set[str] | None) -> str:
    """Escape what OmegaConf would take for an interpolation and is none.

    ``${NAME}`` is one where NAME is among ``keys``, ``${NAME:...}`` where NAME is a resolver. With ``keys`` None all
    text is literal.
    """

    def escape(match: re.Match[str]) -> str:
        slashes, name, end = match.groups()
        if keys is not None and (name in keys if end == "}" else name in RESOLVERS or OmegaConf.has_resolver(name)):
            return match[0]
        return slashes * 2 + "\\" + match[0][len(slashes) :]

    escaped = re.sub(r"(\\*)\$\{(?=([\w.]*)([:}]?))", escape, text)
    if keys is not None and "${" in escaped:
        try:
            parse(escaped)
        except GrammarParseError:
            return literal(text, None)
    return escaped


def quoted(text: str) -> str:
    """Return a text as Hydra's grammar writes it."""
    return QuotedString(text, Quote.single).with_quotes()


def _not_a_setting(words: list[str], number: int, leaves: dict[str, Setting]) -> str:
    """Say what to do with a word that is not KEY=VALUE; behind a text setting, it is the rest of an unquoted text."""
    key, _, value = words[number].partition("=")
    before, equals, begun = words[number - 1].partition("=") if number else ("", "", "")
    if equals and before in leaves and leaves[before].is_text and not key.startswith("-"):
        rest = []
        for word in words[number:]:
            if "=" in word:
                break
            rest.append(word)
        text = " ".join([begun, *rest])
        return f"{before}={text}: text with spaces needs quotes, write {before}='{text}'"
    example = f"{key.lstrip('-')}={value or '...'}" if key.startswith("-") else f"{next(iter(leaves))}={words[number]}"
    return f"'{words[number]}' is not a setting: write KEY=VALUE, for example {example}"


def remedy(key: str, known: list[str]) -> str:
    """Say what to do about a key that is none of the known ones."""
    inside = [each for each in known if each.startswith(f"{key}.")]
    if inside:
        return f"it is a section, set one of {', '.join(inside)}"
    alike = difflib.get_close_matches(key, known, n=1) or [each for each in known if each.endswith(f".{key}")]
    return f"did you mean {' or '.join(alike)}?" if alike else "--help all lists them"


def _option(group: Group, option: str) -> str:
    """Return the option as Hydra knows it: relative to the folder of the group's name."""
    if option == "null" and group.name == "experiment":
        return "none"
    if option in group.names:
        read_yaml(group.files[option], "write the recipe again")  # Hydra's own reader has no bounds
        return quoted(group.names[option])  # else a number to Hydra where it looks like one
    known = f"the options are {', '.join(sorted(group.names))}" if group.names else "it has no options yet"
    raise UserError(f"{group.name}={option}: there is no such option, {known}")


def _text_word(setting: Setting, text: str, keys: set[str], sweep: bool) -> Word:
    if sweep and SWEEP_FUNCTION.match(text):
        return Word(setting.key, [text], is_sweep=True)
    values = []
    for piece in _pieces(text) if sweep else [text]:
        if setting.is_nullable and piece == "null":
            values.append(piece)
            continue
        has_quotes = len(piece) > 1 and piece[0] == piece[-1] and piece[0] in "'\""
        values.append(quoted(literal(piece[1:-1] if has_quotes else piece, keys)))
    return Word(setting.key, values)


def _value_word(setting: Setting, text: str, schema: type, sweep: bool) -> Word:
    """Return the override of a setting that is no text: Hydra's grammar, each value checked for type and range."""
    plain = setting.kind.removesuffix(" | None")
    expected = EXPECTED.get(plain, plain) + (" or null" if setting.is_nullable else "")
    try:
        override = OverridesParser.create().parse_override(f"{setting.key}={text}")
        if override.is_sweep_override() and not sweep:
            raise UserError(
                f"{setting.key}={text}: one value is expected; a list is written '[a,b]', and several runs take -m"
            )
        for value in _swept_values(override):
            setting.check_flag(value)
            config = _blank(schema)
            OmegaConf.update(config, setting.key, value, merge=False)
            if not OmegaConf.is_interpolation(*_parent(config, setting.key)):
                converted = OmegaConf.select(config, setting.key)
                setting.check(OmegaConf.to_container(converted) if OmegaConf.is_list(converted) else converted)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{setting.key}={text}: expected {expected}") from error
    if override.is_sweep_override() and not SWEEP_FUNCTION.match(text):
        return Word(setting.key, _pieces(text))
    return Word(setting.key, [text], is_sweep=override.is_sweep_override())


def _swept_values(override: Override) -> list[object]:
    if not override.is_sweep_override():
        return [override.value()]
    return list(override.sweep_iterator()) if override.is_discrete_sweep() else []


@cache
def _blank(schema: type) -> DictConfig:
    """Return a config of a schema whose values do not matter: a place to try values in."""
    config = OmegaConf.structured(schema)
    assert isinstance(config, DictConfig)
    return config


def _parent(config: DictConfig, key: str) -> tuple[DictConfig, str]:
    path, _, name = key.rpartition(".")
    return (OmegaConf.select(config, path) if path else config), name


def _pieces(text: str) -> list[str]:
    """Split a sweep at its commas, those inside quotes and brackets aside.

    A quote opens a quoted value only where a value begins: an apostrophe inside a word is a letter.
    """
    pieces, piece, depth, quote = [], "", 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote and not piece.endswith("\\") else quote
        elif letter in "'\"" and not piece.strip():
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth = max(depth - 1, 0)
        elif letter == "," and depth == 0:
            pieces.append(piece.strip())
            piece = ""
            continue
        piece += letter
    return [*pieces, piece.strip()]
