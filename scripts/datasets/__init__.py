# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Datalists from the official folders of public data sets; `python -m scripts.datasets` lists them."""
