# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A page in the browser: `python -m scripts.page [--fixed_image F --moving_image M]` (needs requirements-page.txt).

Two images side by side; click something in either and see it in the other, with the confidence. The server listens on
this machine alone unless told otherwise. Each visitor has a `Desk` of their own; model and embeddings are shared.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fire
from monai.bundle import ConfigWorkflow

from .errors import InputError, one_line_errors

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing leaves this machine
ROOT = Path(__file__).resolve().parent.parent


def run(
    fixed_image: str = "", moving_image: str = "", host: str = "127.0.0.1", port: int = 7860, upload: str = "64mb",
    **overrides: object,
) -> None:  # fmt: skip
    """Serve the page until interrupted.

    Args:
        fixed_image, moving_image: a pair to start with.
        host, port: where to listen; anything but 127.0.0.1 lets others in.
        upload: largest file that may be uploaded.
        overrides: any id of configs/inference.yaml.
    """
    one_line_errors()
    try:
        import gradio as gr  # an extra: the rest of the bundle works without it

        from .page_layout import CSS, build
    except ImportError as error:
        raise InputError("page: gradio is not installed; pip install -r requirements-page.txt") from error
    if bool(fixed_image) != bool(moving_image):
        raise InputError("fixed_image, moving_image: give both, or none")
    files: dict[str, str | Path] | None = {"fixed": fixed_image, "moving": moving_image} if fixed_image else None
    options = {"progress": False, **overrides}
    workflow = ConfigWorkflow(str(ROOT / "configs" / "inference.yaml"), workflow_type="infer", **options)
    workflow.initialize()
    page = build(workflow.inferer, workflow.network_def.to(workflow.device), files)
    fonts = ["system-ui", "sans-serif"]  # not from the network
    page.queue(max_size=32).launch(
        server_name=host, server_port=port, max_file_size=upload, share=False, show_error=False, footer_links=[],
        css=CSS, theme=gr.themes.Default(font=fonts, font_mono=["monospace"]), enable_monitoring=False, ssr_mode=False,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(fire.Fire(run))
