"""Everything that an operation imports, loaded once: a forked process then starts with it."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Final

import lading
import lading.catalog
import lading.cli
import lading.flows
import lading.materialize
import lading.objects

for package in (lading, lading.flows, lading.objects, lading.catalog, lading.materialize, lading.cli):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

LOADED: Final = True
