"""One of many processes that work on one store: ``python -m tests.contract.crowd ROOT RUN SECONDS NUMBER``.

Prints a JSON object: how often it did what, what went wrong, and how long each listing took.
"""

from __future__ import annotations

import io
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

from lading import Store
from lading.errors import LadingError
from tests.tarmake import END, file

#: The image that all give names to.
SHARED = "shared-image"


def work(root: Path, run: Path, seconds: float, number: int) -> dict[str, object]:
    """Create, name, look up, list, mount and delete until the time is over."""
    random_ = random.Random(number)
    done: Counter[str] = Counter()
    wrong: list[str] = []
    waits: list[float] = []
    names: list[str] = []
    with Store.open(root, run=run) as store:
        end = time.monotonic() + seconds
        turn = 0
        while time.monotonic() < end:
            turn += 1
            mine = f"p{number}-{turn}"
            try:
                _turn(store, mine, random_, done, wrong)
                name = f"name-{mine}"
                store.add_names(SHARED, [name])
                names.append(name)
                started = time.monotonic()
                listed = {layer.id for layer in store.layers.all()}
                waits.append(time.monotonic() - started)
                if mine in listed:
                    wrong.append(f"{mine} is listed after it was deleted")
            except LadingError as error:
                wrong.append(f"{mine}: {type(error).__name__}: {error}")
            done["turns"] += 1
    return {"done": done, "wrong": wrong, "waits": waits, "names": names}


def _turn(store: Store, mine: str, random_: random.Random, done: Counter[str], wrong: list[str]) -> None:
    data = file(b"f", random_.randbytes(random_.randrange(1, 20_000))) + END
    layer = store.layers.import_(io.BytesIO(data), id=mine, names=[f"{mine}-name"])
    if store.layers.get(f"{mine}-name").id != mine:
        wrong.append(f"{mine}: its name leads elsewhere")
    image = store.images.create(layer.id)
    container = store.containers.create(image.id)
    store.set_metadata(container.id, mine)
    if random_.random() < 0.5:
        point = store.mount(container.id)
        (point / "written").write_text(mine)
        if not (point / "f").is_file():
            wrong.append(f"{mine}: its file is not seen")
        store.unmount(container.id)
        done["mounts"] += 1
    if store.metadata(container.id) != mine:
        wrong.append(f"{mine}: its metadata was lost")
    store.containers.delete(container.id)
    store.images.delete(image.id)
    if store.layers.exists(mine):
        wrong.append(f"{mine}: its layer stayed")
    if random_.random() < 0.05:
        store.gc()
        done["collections"] += 1


if __name__ == "__main__":
    _, root, run, seconds, number = sys.argv
    print(json.dumps(work(Path(root), Path(run), float(seconds), int(number))))
