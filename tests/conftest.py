# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Tests import the bundle as `scripts`, from any working directory."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
torch.set_num_threads(1)
