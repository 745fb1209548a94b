# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Handlers that MONAI's evaluator calls after each pair."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from .errors import as_bool
from .outputs import write_outputs
from .registration import Registration
from .report import write_report

logger = logging.getLogger(__name__)


class SaveRegistration:
    """Write each pair's results.

    Args:
        output_dir: folder of the results.
        probabilities: also write the regions' probability maps.
        report: also write report.html.
    """

    def __init__(self, output_dir: str | Path, *, probabilities: bool = False, report: bool = True) -> None:
        self.output_dir = Path(output_dir)
        self.probabilities = as_bool(probabilities, "save_probabilities")
        self.report = as_bool(report, "report")

    def attach(self, engine: Engine) -> None:
        """Register with an engine."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        output: Any = engine.state.output
        registration: Registration = output["pred"].meta["registration"]
        report = write_report if self.report else None
        write_outputs(registration, self.output_dir, probabilities=self.probabilities, report=report)
        found, total = int(registration.pairs.found.sum()), len(registration.pairs)
        logger.info(
            "%d of %d prompts have a counterpart; folding %.3f %%; %.1f s; results in %s",
            found,
            total,
            registration.folding_percent,
            sum(registration.seconds.values()),
            self.output_dir,
        )
