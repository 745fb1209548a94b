# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What is on the page in the browser, and what each click on it does (needs gradio; `page` is the command)."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from .errors import InputError, reason
from .inferer import PromptRegInferer
from .page_canvas import NAMES
from .page_desk import Desk
from .readers import PICTURES, VOLUMES
from .samples import PAIRS
from .segmenters.promptable import PromptableSegmenter

logger = logging.getLogger(__name__)
NOTHING = "⚠ Load a pair of images first, and wait until it is ready."
GIVEN, OWN = "the pair given on the command line", "my own files"
CSS = """
footer {display: none !important}
.prompts td, .prompts th {padding: 2px 14px; text-align: left}
#status {min-height: 2.2em}
"""


def told(work: Callable[[], str]) -> str:
    """What to say: the answer, or one sentence on what was wrong; the log names the cause of what is nobody's fault."""
    try:
        return work()
    except InputError as wrong:
        return f"⚠ {reason(wrong)}"
    except Exception:
        logger.exception("a request failed")
        return "⚠ This could not be done; the log of the server names the cause."


def _step(at: int, count: int) -> Any:
    return gr.update(visible=True, maximum=max(1, count - 1), value=at)


def build(
    inferer: PromptRegInferer, network: PromptableSegmenter, given: dict[str, str | Path] | None = None
) -> gr.Blocks:
    """The page as a `gradio.Blocks`, with a pair of files by side to start with."""
    samples = ([GIVEN] if given else []) + [*PAIRS, OWN]

    with gr.Blocks(title="PromptReg", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        desk = gr.State(None, time_to_live=7200)
        gr.Markdown("## PromptReg: point at something in one image, see it in the other\n"
                    "Not a medical device; for research.")  # fmt: skip
        with gr.Row():
            choice = gr.Dropdown(samples, value=samples[0], label="Images", elem_id="choice", scale=2)
            uploads = {
                side: gr.File(label=f"{side} image", file_types=[*PICTURES, *VOLUMES], visible=False, height=90)
                for side in ("moving", "fixed")
            }
            load = gr.Button("Load", variant="primary", elem_id="load", scale=1)
        status = gr.Markdown("Choose images and press *Load*.", elem_id="status")
        images, sliders = {}, {}
        with gr.Row():
            for side in ("moving", "fixed"):
                with gr.Column():
                    images[side] = gr.Image(
                        label=f"{side} image", interactive=False, format="png", elem_id=side, buttons=[]
                    )
                    with gr.Row():
                        for name in NAMES:
                            sliders[side, name] = gr.Slider(
                                0, 1, step=1, label=name, visible=False, min_width=90, elem_id=f"{side}_{name}"
                            )
        ask = gr.Radio(["click", "box"], value="click", label="Ask with (a box is two clicks)", elem_id="ask")
        with gr.Row():
            table = gr.HTML(elem_id="table")
            with gr.Column():
                chosen = gr.Dropdown([], multiselect=True, label="Prompts to remove", elem_id="chosen")
                with gr.Row():
                    remove = gr.Button("Remove", elem_id="remove")
                    clear = gr.Button("Remove all", elem_id="clear")
        register = gr.Button("Register with these prompts", variant="primary", elem_id="register")
        with gr.Row():
            with gr.Column():
                overlay = gr.Image(
                    label="fixed / moved", interactive=False, format="png", elem_id="overlay", buttons=[], visible=False
                )
                share = gr.Slider(0, 1, value=0.5, label="fixed ... moved", elem_id="share", visible=False)
            files = gr.File(
                label="Field, regions, prompts, report",
                file_count="multiple",
                interactive=False,
                elem_id="files",
                visible=False,
            )

        everything = [desk, status, *images.values(), *sliders.values(), table, chosen, overlay, share]
        no_files = gr.update(value=None, visible=False)

        def shown(one: Desk | None, text: str, *, idle: bool = False) -> list[Any]:
            """What `everything` shows of a desk; `idle`: nobody can ask it yet."""
            if one is None:
                return [gr.skip(), text, *[gr.skip()] * (len(everything) - 2)]
            planes = [one.slices(side).get(name) for side, name in sliders]
            steps = [gr.update(visible=False) if p is None else _step(*p) for p in planes]
            picture, names = [one.picture(side) for side in images], gr.update(choices=one.names, value=[])
            blend, there = one.blend(0.5), one.result is not None
            results = [gr.update(value=blend, visible=there), gr.update(value=0.5, visible=there)]
            return [None if idle else one, text, *picture, *steps, one.table(), names, *results]

        def on_load(name: str, moving: str | None, fixed: str | None) -> Iterator[list[Any]]:
            made: list[Desk] = []

            def read() -> str:
                with tempfile.TemporaryDirectory() as folder:
                    own: dict[str, str | Path] = {"fixed": fixed or "", "moving": moving or ""}
                    pair = own if name == OWN else given if name == GIVEN and given else PAIRS[name](Path(folder))
                    made.append(Desk(pair, inferer, network))
                return "Both images are encoded and compared, once. Pictures take a minute, volumes several."

            def prepare() -> str:
                seconds = sum(made[0].session.seconds.values())
                return f"Ready after {seconds:.0f} s. Click something in either image."

            text = told(read)
            if made:
                yield [*shown(made[0], text, idle=True), no_files]
                text = told(prepare)
            yield [*shown(made[0] if made and made[0].ready else None, text), no_files]

        def on_click(side: str) -> Callable[..., list[Any]]:
            def clicked(one: Desk | None, how: str, event: gr.SelectData) -> list[Any]:
                if one is None:
                    return shown(None, NOTHING)
                text = told(lambda: one.click(side, list(event.index), box=how == "box"))
                return shown(one, text)

            return clicked

        def on_slice(side: str, name: str) -> Callable[..., Any]:
            def moved(one: Desk | None, at: int, share: float) -> list[Any]:
                if one is None:
                    return [None, None]
                one.go_to(side, name, int(at))
                return [one.picture(side), one.blend(share) if side == "fixed" else gr.skip()]

            return moved

        def on_remove(one: Desk | None, names: list[str] | None) -> list[Any]:
            if one is None:
                return shown(None, NOTHING)

            def work() -> str:
                one.remove(one.names if names is None else names)
                return "Removed."

            return shown(one, told(work))

        def on_register(one: Desk | None) -> list[Any]:
            if one is None:
                return [*shown(None, NOTHING), no_files]
            written: list[str] = []

            def work() -> str:
                written.extend(one.register())
                result = one.result
                if result is None:
                    raise InputError("register: the prompts changed meanwhile; register again")
                pairs = result.pairs
                return (
                    f"Registered: {int(pairs.found.sum())} of {len(pairs)} prompts have a counterpart, "
                    f"{len(pairs) - len(one.names)} of them sampled; folding {result.folding_percent:.3f} %."
                )

            text = told(work)
            return [*shown(one, text), gr.update(value=written, visible=True) if written else no_files]

        both = list(images.values())
        private: dict[str, Any] = {"api_visibility": "private"}
        busy: dict[str, Any] = {**private, "show_progress_on": both}
        choice.change(
            lambda name: [gr.update(visible=name == OWN)] * 2, choice, list(uploads.values()), **private
        )  # fmt: skip
        load.click(on_load, [choice, uploads["moving"], uploads["fixed"]], [*everything, files], **busy)
        for side, image in images.items():
            image.select(on_click(side), [desk, ask], everything, **busy)
        quiet: dict[str, Any] = {**private, "show_progress": "hidden", "trigger_mode": "always_last"}
        for (side, name), slider in sliders.items():
            slider.input(on_slice(side, name), [desk, slider, share], [images[side], overlay], **quiet)
        remove.click(on_remove, [desk, chosen], everything, **busy)
        clear.click(lambda one: on_remove(one, None), desk, everything, **busy)
        register.click(on_register, desk, [*everything, files], show_progress_on=both, **private)

        def on_share(one: Desk | None, at: float) -> Any:
            return None if one is None else one.blend(at)

        share.input(on_share, [desk, share], overlay, **quiet)
    return page
