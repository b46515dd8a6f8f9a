"""Reads TOML files into dataclasses. Needs msgspec."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from diptych_serving.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def load_toml(
    path: Path,
    schema: type[T],
    *,
    missing: str,
    overrides: Sequence[str] = (),
    decode: Callable[[type, object], object] | None = None,
) -> T:
    """Read a file into a dataclass whose fields are its keys; a field that is a dataclass is a section.

    missing    what the error says to do if there is no such file
    overrides  `section.key=value`, each sets one key; the command line's --set
    decode     makes a value of a type that TOML does not have, as msgspec's `dec_hook`
    raises     UserError, with the file and the key
    """
    tree = read_toml(path, missing=missing)
    for override in overrides:
        _set(tree, override)
    _reject_unknown_keys(tree, schema, f"{path}", section="")
    try:
        return msgspec.convert(tree, schema, dec_hook=decode)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}") from None


def read_toml(path: Path, *, missing: str) -> dict[str, Any]:
    """The tables of a file, unchecked. Raises UserError where it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. {missing}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def _set(tree: dict[str, Any], override: str) -> None:
    """Apply one `section.key=value`. The value is TOML; what is not valid TOML is a plain string."""
    name, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: expected section.key=value, such as train.epochs=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, key = name.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {override}: '{section}' is a value, not a section")
    tree[key] = value


def _reject_unknown_keys(tree: dict[str, Any], schema: type, where: str, section: str) -> None:
    types = typing.get_type_hints(schema)
    for key, value in tree.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            place = f"{where} [{section}]" if section else where
            raise UserError(f"{place}: unknown key '{key}'.{hint} Known keys: {', '.join(types)}")
        if dataclasses.is_dataclass(types[key]) and isinstance(value, dict):
            _reject_unknown_keys(value, typing.cast(type, types[key]), where, f"{section}.{key}".strip("."))
