# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Wrong input is told in one line: what, where, and what would be right."""

from __future__ import annotations

import sys
from types import TracebackType


class InputError(ValueError):
    """The user's input cannot be used as it is. The message names the input, what was wrong and what would be right."""


def as_bool(value: object, name: str) -> bool:
    """A truth value; the command line hands over "true" and "false" as words, and any word is true to Python.

    Raises:
        InputError: for anything else.
    """
    words = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise InputError(f"{name}: {value!r} is neither true nor false")


def _chain(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _is_users(error: BaseException) -> bool:
    """Whether the user can mend it: wrong input, or an override that names an option which does not exist."""
    # By name: MONAI Label and the tests import this module more than once.
    return type(error).__name__ == InputError.__name__ or (
        isinstance(error, TypeError) and "__init__() got an unexpected keyword argument" in str(error)
    )


def reason(error: BaseException) -> str:
    """Why something failed, in one line: the innermost wrong input in the chain of causes, else the error itself."""
    wrong = next((e for e in _chain(error) if _is_users(e)), error)
    text = " ".join(str(wrong).split())
    return text if _is_users(wrong) else f"{type(wrong).__name__}: {text}"


def one_line_errors() -> None:
    """From now on an uncaught `InputError` ends the process with its message alone instead of a traceback.

    MONAI wraps what goes wrong inside a transform, so the chain of causes is searched. Everything else keeps its
    traceback.
    """
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        wrong = next((e for e in _chain(error) if _is_users(e)), None)
        if wrong is None:
            usual(kind, error, traceback)
        else:
            print(f"promptreg: {wrong}", file=sys.stderr)

    sys.excepthook = hook
