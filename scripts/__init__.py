# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""PromptReg: registration by corresponding prompts, as a MONAI bundle."""
