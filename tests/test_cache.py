# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""An image is encoded once, within bounds; variants of the method change one setting and nothing else."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from toy import DiscSegmenter

from scripts.correspond import Method
from scripts.errors import InputError
from scripts.methods.promptreg import changed
from scripts.segmenters.cache import BoundedCache, image_key


def test_least_recently_used_goes_first_and_the_bound_holds() -> None:
    cache: BoundedCache[str] = BoundedCache(10)
    cache.put("a", "A", 4)
    cache.put("b", "B", 4)
    assert cache.get("a") == "A"  # now b was used longest ago
    cache.put("c", "C", 5)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.used) == ("A", None, "C", 9)
    cache.put("huge", "H", 11)
    assert cache.get("huge") is None and len(cache) == 2
    assert len(deepcopy(cache)) == 0 and deepcopy(cache).limit == 10
    cache.clear()
    assert cache.used == 0 and cache.get("a") is None


def test_keys_tell_images_apart() -> None:
    image = torch.rand(1, 4, 6)
    assert image_key(image) == image_key(image.clone())
    others = [image.reshape(1, 6, 4), image + 1, image.double(), image.transpose(1, 2)]
    assert len({image_key(other) for other in [image, *others]}) == 5


def test_an_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, encoded = DiscSegmenter(), []
    network.cache.limit = 10**9
    original = network._encode
    monkeypatch.setattr(network, "_encode", lambda inputs: encoded.append(len(inputs)) or original(inputs))
    one, two = torch.rand(1, 40, 50), torch.rand(1, 30, 30)
    first = network.encode([one, two, one])
    again = network.encode([two, one])
    assert sum(encoded) == 2
    assert first[0] is first[2] is again[1] and first[1] is again[0]
    assert torch.equal(first[1].features, DiscSegmenter().encode([two])[0].features)


def test_variants_change_one_setting() -> None:
    method = Method()
    other = changed(method, ["auxiliary", "sigma"], 7.0, "auxiliary.sigma")
    assert other.auxiliary.sigma == 7.0 and method.auxiliary.sigma != 7.0
    assert other.inversion == method.inversion
    with pytest.raises(InputError, match="names no setting"):
        changed(method, ["auxiliary", "sgima"], 7.0, "auxiliary.sgima")
