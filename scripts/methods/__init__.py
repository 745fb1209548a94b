# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Registration methods that can be evaluated side by side."""
