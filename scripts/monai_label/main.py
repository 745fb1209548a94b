# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""MONAI Label's entry: `monailabel start_server --app scripts/monai_label --studies DIR` (docs/interactive.md).

The model is of the type "deepgrow", the one for which 3D Slicer's and OHIF's plugins send their clicks.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.app import app as server
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.errors import InputError, reason  # noqa: E402  # needs the path
from scripts.monai_label.answers import write_registration  # noqa: E402
from scripts.monai_label.gate import Gate  # noqa: E402
from scripts.monai_label.options import Methods  # noqa: E402
from scripts.monai_label.rooms import AUTO, REGION_ON, Rooms  # noqa: E402
from scripts.monai_label.studies import RESULT, Series, Studies  # noqa: E402
from scripts.registration import Registration  # noqa: E402

logger = logging.getLogger(__name__)
# Ids of configs/inference.yaml that `--conf NAME VALUE` may set.
CONF = ("device", "prealignment", "precision", "checkpoint", "seed")


class Counterparts(InferTask):  # type: ignore[misc]  # untyped
    """Clicks in one image, regions in another."""

    def __init__(self, rooms: Rooms) -> None:
        text = "Click something in this image; it is found in the other image."
        super().__init__(InferType.DEEPGROW, {"region": 1}, 3, text)
        self.rooms = rooms

    def config(self) -> dict[str, Any]:
        """Options as the clients show them: of a list the first is the default."""
        own = {"other_image": [AUTO, *self.rooms.ids()], "region_on": [*REGION_ON], "session": "", "register": False}
        return own | self.rooms.methods.shown()

    def is_valid(self) -> bool:
        """Always."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        raise NotImplementedError("MyApp.infer answers")


class MyApp(MONAILabelApp):  # type: ignore[misc]  # untyped
    """PromptReg's app."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        settings.MONAI_LABEL_SESSIONS = False  # those of the server; ours have names
        if server.middleware_stack is not None and not isinstance(server.middleware_stack, Gate):
            server.middleware_stack = Gate(server.middleware_stack)  # built before this app, so not by add_middleware
        self.methods = Methods({name: conf[name] for name in CONF if name in conf})
        super().__init__(app_dir, studies, conf, name="PromptReg", description="Click in one image, see it in another")

    def init_datastore(self) -> Any:
        """A folder of studies, or DICOMweb when the studies are an address."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return Studies(
            str(Path(self.studies).resolve()),
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, Any]:
        """The one model."""
        store = self.datastore()
        images = store if isinstance(store, Studies) else Series(store)
        self.rooms = Rooms(images.place, images.images, self.methods)
        return {"promptreg": Counterparts(self.rooms)}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Answer, or tell in one sentence what is wrong; the log names the cause of what is nobody's fault."""
        if request.get("model") not in self._infers:
            raise HTTPException(404, f"model: there is none named {str(request.get('model'))[:80]!r}; use 'promptreg'")
        try:
            if request.get("register") and not isinstance(self.datastore(), Studies):
                raise InputError("register: needs studies in a folder; those of DICOMweb cannot take a field")
            answer = self.rooms.answer(request)
            told = answer.told | {"label_names": {"region": 1}}
            if answer.registration is not None:
                told["registration"] = self._stored(answer.registration, told)
        except InputError as wrong:
            raise HTTPException(400, reason(wrong)) from wrong
        except Exception as error:
            logger.exception("a request failed")
            raise HTTPException(500, "this could not be done; the server's log names the cause") from error
        return {"label": str(answer.regions), "tag": "original", "file": str(answer.regions), "params": told}

    def _stored(self, registration: Registration, told: dict[str, Any]) -> dict[str, str]:
        """Put the moved image and the field into the datastore; returns their ids."""
        names = [told[side].split(".")[0] for side in ("moving_image", "fixed_image")]
        ids = {}
        with tempfile.TemporaryDirectory(prefix="promptreg-") as folder:
            for what, file in write_registration(registration, Path(folder)).items():
                ids[what] = f"{names[0]}_to_{names[1]}_{what}"
                self.datastore().add_image(ids[what], str(file), {RESULT: what})
        return ids
