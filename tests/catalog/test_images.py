"""Image records and the digests that find them."""

from __future__ import annotations

from lading.catalog import bigdata, images
from lading.catalog.database import Catalog
from lading.values import Image
from tests.catalog.conftest import item


def get(catalog: Catalog, image_id: str) -> Image:
    with catalog.read() as conn:
        found = images.get_image(conn, image_id)
    assert found is not None
    return found


def put(catalog: Catalog, image_id: str, key: str, digest: str) -> None:
    entry = item(catalog, key, digest.encode(), digest)
    with catalog.write("set-image-data") as tx:
        bigdata.put_big_data(tx, "image", image_id, entry)


def by_digest(catalog: Catalog, digest: str) -> list[str]:
    with catalog.read() as conn:
        return [image.id for image in images.images_by_digest(conn, digest)]


def test_an_image_comes_back_as_it_was_given(catalog: Catalog) -> None:
    """One by one and in the list, oldest first."""
    full = Image(
        "z", digest="d", digests=("d",), names=("2", "1"), names_history=("old",), layer="l", mapped_layers=("m", "n"),
        metadata="text", created_ns=3, flags={"f": {"g": [True]}},
    )  # fmt: skip
    with catalog.write("x") as tx:
        images.create_image(tx, full)
        images.create_image(tx, Image("a"))

    assert get(catalog, "z") == full
    with catalog.read() as conn:
        assert images.list_images(conn) == [full, Image("a")]
        assert images.get_image(conn, "nothing") is None


def test_the_first_manifests_digest_sticks(catalog: Catalog) -> None:
    """Also after the item is set again; every other manifest's digest follows its item."""
    with catalog.write("x") as tx:
        images.create_image(tx, Image("i"))
    put(catalog, "i", "config", "sha256:config")
    assert get(catalog, "i").digest == ""
    put(catalog, "i", "manifest-amd64", "sha256:1")
    put(catalog, "i", "manifest", "sha256:2")
    put(catalog, "i", "manifest-amd64", "sha256:3")

    image = get(catalog, "i")
    assert image.digest == "sha256:1"
    assert image.digests == ("sha256:1", "sha256:3", "sha256:2")
    assert [by_digest(catalog, f"sha256:{name}") for name in ("1", "2", "3", "config")] == [["i"], ["i"], ["i"], []]
    put(catalog, "i", "manifest", "sha256:4")
    assert [by_digest(catalog, "sha256:2"), by_digest(catalog, "sha256:4")] == [[], ["i"]]


def test_a_given_digest_is_kept(catalog: Catalog) -> None:
    """A manifest only adds to it."""
    with catalog.write("x") as tx:
        images.create_image(tx, Image("i", digest="sha256:given"))
    put(catalog, "i", "manifest", "sha256:1")

    assert get(catalog, "i").digests == ("sha256:given", "sha256:1")


def test_images_share_digests_and_deleting_one_leaves_the_others(catalog: Catalog) -> None:
    """Each image is listed once, oldest first; keys are case-sensitive."""
    with catalog.write("x") as tx:
        images.create_image(tx, Image("z", digest="sha256:1"))
        images.create_image(tx, Image("a"))
        images.create_image(tx, Image("m"))
    put(catalog, "z", "manifest", "sha256:1")
    put(catalog, "a", "manifest-2", "sha256:1")
    put(catalog, "m", "Manifest", "sha256:1")
    assert by_digest(catalog, "sha256:1") == ["z", "a"]
    with catalog.write("delete-image") as tx:
        images.delete_image(tx, "z")

    assert by_digest(catalog, "sha256:1") == ["a"]
    assert by_digest(catalog, "") == []
    with catalog.read() as conn:
        assert [image.id for image in images.list_images(conn)] == ["a", "m"]
