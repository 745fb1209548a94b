# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""One frame out of a file that holds several: time points of a volume, frames of a film, pages of a TIFF."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError


@dataclass(frozen=True)
class Frame:
    """Which frame of a series is wanted.

    Attributes:
        index: 0-based; None where there must be only one.
        option: what the user would set, e.g. "fixed_frame"; empty where there is no such option.
    """

    index: int | str | None = None
    option: str = ""

    def of(self, count: int, what: str = "frames") -> int:
        """The index to take from `count`.

        Raises:
            InputError: several and none chosen, none of that index, or no whole number.
        """
        last = count - 1
        if self.index is None:
            if count > 1 and self.option:
                raise InputError(f"holds {count} {what}; choose one with --{self.option} (0 to {last})")
            if count > 1:
                raise InputError(f"holds {count} {what}; save the one that is meant as a file of its own")
            return 0
        text = str(self.index)
        if isinstance(self.index, bool) or not text.isdecimal() or int(text) > last:
            there = f"{count} {what}, 0 to {last}" if count > 1 else "one frame, 0"
            raise InputError(f"{self.option} is {text}, but the file holds {there}; give one of these")
        return int(text)
