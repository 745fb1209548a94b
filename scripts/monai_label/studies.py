# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""MONAI Label's folder of studies, out of which no name leads: neither ids, nor tags, nor links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore

from ..confine import PLAIN, image_in
from ..errors import InputError
from ..readers import PICTURES, VOLUMES

RESULT = "promptreg"  # key in an image's info that tells what of a registration it is


class Studies(LocalDatastore):  # type: ignore[misc]  # untyped
    """The stock datastore with confined names."""

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """As the stock one; status 400 for an id that is no name or a file that is no image."""
        _check(image_id or "image", "image")
        if not image_filename.lower().endswith((*VOLUMES, *PICTURES)):
            raise HTTPException(400, f"file: is no image; give one of {', '.join((*PICTURES, *VOLUMES))}")
        return super().add_image(image_id, image_filename, image_info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """As the stock one; status 400 for a tag that is no name, since it becomes a folder."""
        _check(label_tag, "tag")
        return super().save_label(image_id, label_filename, label_tag, label_info)

    def get_image_uri(self, image_id: str) -> str:
        """As the stock one; "" for links that lead out."""
        return self._inside(super().get_image_uri(image_id))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """As the stock one; "" for links that lead out."""
        return self._inside(super().get_label_uri(label_id, label_tag))

    def images(self) -> list[str]:
        """Ids of what can be registered: images that lie in the folder and are no results."""
        ids = (name for name in self.list_images() if RESULT not in self.get_image_info(name))
        return sorted(name for name in ids if self.get_image_uri(name))

    def place(self, name: Any, what: str) -> Path:
        """Where an image lies (see `confine.image_in`)."""
        return image_in(self._datastore_path, name, what=what)

    def _inside(self, uri: str) -> str:
        return uri if uri and Path(self._datastore_path).resolve() in Path(uri).resolve().parents else ""


class Series:
    """A DICOMweb datastore of MONAI Label as a source of images: ids are series' UIDs.

    Args:
        store: of the type `DICOMWebDatastore`, which fetches a series and makes a NIfTI file of it.
    """

    def __init__(self, store: Any) -> None:
        self.store = store

    def images(self) -> list[str]:
        """UIDs of all series."""
        return sorted(self.store.list_images())

    def place(self, name: Any, what: str) -> Path:
        """Where a series was put; `InputError` for what is no UID of one."""
        if not isinstance(name, str) or name not in self.images():
            raise InputError(f"{what}: {str(name)[:80]!r} is no UID of a series that the DICOMweb server has")
        return Path(self.store.get_image_uri(name))


def _check(name: str, what: str) -> None:
    if len(name) > 200 or not PLAIN.fullmatch(name):
        raise HTTPException(400, f"{what}: {name[:80]!r} is no name; use letters, digits, '-' and '_'")
