# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Embeddings of images seen lately, so that an image is encoded once however often it is asked for."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from threading import Lock
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


def image_key(image: Tensor) -> str:
    """What identifies an image `[C, *S]`: its values, shape and dtype."""
    content = image.detach().cpu().contiguous()
    digest = hashlib.blake2b(content.numpy().tobytes(), digest_size=16).hexdigest()
    return f"{digest} {tuple(image.shape)} {image.dtype}"


class BoundedCache(Generic[T]):
    """The values used last, as many as fit; safe for threads.

    Args:
        limit: bytes kept at most; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._items: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._lock = Lock()

    def __deepcopy__(self, memo: object) -> BoundedCache[T]:
        """Empty: a copy of a model (MONAI Label makes one) may get other weights."""
        return BoundedCache(self.limit)

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str) -> T | None:
        """The value, which now counts as used last; None if it is not there."""
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key][0]

    def put(self, key: str, value: T, size: int) -> None:
        """Keep a value of `size` bytes; those not used for longest make room for it."""
        with self._lock:
            if size > self.limit or key in self._items:
                return
            while self.used + size > self.limit:
                _, (_, freed) = self._items.popitem(last=False)
                self.used -= freed
            self._items[key] = value, size
            self.used += size

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._items.clear()
            self.used = 0
