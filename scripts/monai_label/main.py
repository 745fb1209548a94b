# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""MONAI Label's entry: `monailabel start_server --app scripts/monai_label --studies DIR` (docs/interactive.md).

The model is of the type "deepgrow", the one for which 3D Slicer's and OHIF's plugins send their clicks.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monai.bundle import ConfigWorkflow
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.confine import PLAIN  # noqa: E402  # needs the path
from scripts.errors import InputError, reason  # noqa: E402
from scripts.monai_label.rooms import Rooms  # noqa: E402

logger = logging.getLogger(__name__)
LARGEST_UPLOAD = 512 * 2**20
# Ids of configs/inference.yaml that `--conf NAME VALUE` may set.
OPTIONS = ("device", "prealignment", "precision", "checkpoint", "seed")


class Counterparts(InferTask):  # type: ignore[misc]  # untyped
    """Clicks in one image, regions in another."""

    def __init__(self, rooms: Rooms, ids: list[str]) -> None:
        text = "Click something in this image; it is found in the other image."
        options = {"other_image": ids, "register": False, "session": ""}
        super().__init__(InferType.DEEPGROW, {"region": 1}, 3, text, options)
        self.rooms = rooms

    def is_valid(self) -> bool:
        """Always."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        file, told = self.rooms.answer(request)
        return None if file is None else str(file), told | {"label_names": self.labels}


class MyApp(MONAILabelApp):  # type: ignore[misc]  # untyped
    """PromptReg's app."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        overrides = {name: conf[name] for name in OPTIONS if name in conf}
        config = str(ROOT / "configs" / "inference.yaml")
        workflow = ConfigWorkflow(config, workflow_type="infer", logging_file=False, progress=False, **overrides)
        workflow.initialize()
        network = workflow.network_def.to(workflow.device)
        self.rooms = Rooms(Path(studies).resolve(), workflow.inferer, network)
        super().__init__(app_dir, studies, conf, name="PromptReg", description="Click in one image, see it in another")

    def init_infers(self) -> dict[str, Any]:
        """The one model."""
        return {"promptreg": Counterparts(self.rooms, [])}

    def info(self) -> dict[str, Any]:
        """As ever, with the images that can be the other one."""
        self._infers["promptreg"].config()["other_image"] = sorted(self.datastore().list_images())
        return super().info()

    def init_datastore(self) -> Any:
        """The stock one, but what is put into it lies in it."""
        store = super().init_datastore()
        add = store.add_image

        def add_image(image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
            if image_id and (len(image_id) > 200 or not PLAIN.fullmatch(image_id)):
                raise HTTPException(400, f"image: {image_id[:80]!r} is no name; use letters, digits, '-' and '_'")
            if Path(image_filename).stat().st_size > LARGEST_UPLOAD:
                raise HTTPException(413, f"file: is larger than {LARGEST_UPLOAD // 2**20} MB")
            return add(image_id, image_filename, image_info)

        store.add_image = add_image
        return store

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Answer, or tell in one sentence what is wrong; the log names the cause of what is nobody's fault."""
        task = self._infers.get(request.get("model"))
        if task is None:
            raise HTTPException(404, f"model: there is none named {str(request.get('model'))[:80]!r}; use 'promptreg'")
        try:
            file, told = task(request)
        except InputError as wrong:
            raise HTTPException(400, reason(wrong)) from wrong
        except Exception as error:
            logger.exception("a request failed")
            raise HTTPException(500, "this could not be done; the server's log names the cause") from error
        if "registration" in told:
            told["registration"] = self._stored(told)
        return {"label": file, "tag": "original", "file": file, "params": told}

    def _stored(self, told: dict[str, Any]) -> dict[str, str]:
        """Put the moved image and the field into the datastore; returns their ids."""
        names = [told[side].split(".")[0] for side in ("moving_image", "fixed_image")]
        ids = {}
        for what, file in told["registration"].items():
            ids[what] = f"{names[0]}_to_{names[1]}_{what}"
            copy = Path(file).with_name(f"copy{''.join(Path(file).suffixes)}")
            shutil.copy(file, copy)
            self.datastore().add_image(ids[what], str(copy), {"promptreg": what})
            copy.unlink()
        return ids
