# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""An app for MONAI Label: clicks in either of two images of the datastore, counterparts in the other."""
