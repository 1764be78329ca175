"""The error tree: what a caller of Lading can act on.

    LadingError
    ├── InvalidInput    fix the call or the input        (also a ValueError)
    ├── NotFound        name something that exists       (also a LookupError)
    ├── AlreadyExists   choose another id or name
    ├── InUse           release or delete the user first
    ├── Busy            try again later
    ├── Unsupported     another kernel, filesystem, privilege or version is needed
    ├── ReadOnly        the store cannot be written
    ├── Corrupt         run ``lading check``
    └── Full            free space, then try again

A category exists only where callers act differently. Specific errors live beside the code that
raises them, inherit from one of these, and keep their facts as attributes. A class may own a fixed
``text`` (the words scripts look for); context goes in front of it, so that those words end the
message. Anything outside this tree is a bug and keeps its traceback.
"""

from __future__ import annotations


class LadingError(Exception):
    """Root of every error a user can cause or act on. ``str(error)`` is one printable line."""

    text: str = ""

    def __init__(self, context: str = "") -> None:
        """Join the context and the class's own words.

        Args:
            context: what the error is about; empty for the class's words alone.
        """
        words = f"{context}: {self.text}" if context and self.text else context or self.text
        super().__init__(words)


class Untidy(UserWarning):
    """Something that is not needed any more could not be removed yet. What was asked for is done."""


class InvalidInput(LadingError, ValueError):
    """The call or the data handed in is wrong; the same call will fail again."""


class NotFound(LadingError, LookupError):
    """What was named does not exist."""


class AlreadyExists(LadingError):
    """What was to be made exists already."""


class InUse(LadingError):
    """Something else relies on the record."""


class Busy(LadingError):
    """Someone else held a lock for longer than the wait allows."""


class Unsupported(LadingError):
    """This kernel, filesystem, privilege or store version cannot do it."""


class ReadOnly(LadingError):
    """The store, or the filesystem below it, cannot be written."""


class Corrupt(LadingError):
    """Stored bytes or rows are not what was stored."""


class Full(LadingError):
    """No room is left on the filesystem, or less than is to be left."""


class FileTooLarge(Full):
    """The process may not write files of this size; free space would not help."""


class LayerUnknown(NotFound):
    """No layer answers to the reference."""

    text = "layer not known"


class ImageUnknown(NotFound):
    """No image answers to the reference."""

    text = "image not known"


class ContainerUnknown(NotFound):
    """No container answers to the reference."""

    text = "container not known"


class NotALayer(NotFound):
    """The identifier does not name a layer."""

    text = "identifier is not a layer"


class NotAnImage(NotFound):
    """The identifier does not name an image."""

    text = "identifier is not an image"


class NotAContainer(NotFound):
    """The identifier does not name a container."""

    text = "identifier is not a container"


class NotAnID(NotFound):
    """The identifier names no record of any kind."""

    text = "identifier is not a layer, image, or container"


class DuplicateID(AlreadyExists):
    """A record of the kind has this id."""

    text = "that ID is already in use"
    existing: object = None  #: the record that has it, where it was looked up


class DuplicateName(AlreadyExists):
    """A record of the kind has this name."""

    text = "that name is already in use"


class ParentIsContainer(InvalidInput):
    """The parent is the layer of a container."""

    text = "would-be parent layer is a container"


class LayerHasChildren(InUse):
    """Another layer is built on this one."""

    text = "layer has children"


class LayerUsedByImage(InUse):
    """The layer is the top of an image."""

    text = "layer is in use by an image"


class LayerUsedByContainer(InUse):
    """The layer is the writable layer of a container, or is mounted."""

    text = "layer is in use by a container"


class ImageUsedByContainer(InUse):
    """A container was made from the image."""

    text = "image is in use by a container"


class StoreIsReadOnly(ReadOnly):
    """The record is in a store that is only read from."""

    text = "called a write method on a read-only store"


class NotSupported(Unsupported):
    """The driver has no such thing."""

    text = "not supported"


class LayerNotMounted(LadingError):
    """The layer is not mounted."""

    text = "layer is not mounted"


class IncompleteOptions(InvalidInput):
    """The settings do not say where the store is."""

    text = "missing necessary StoreOptions"


class ParentUnknown(NotFound):
    """The record of a layer's parent is gone."""

    text = "parent of layer not known"


class LoadError(Corrupt):
    """The store's records cannot be read."""

    text = "error loading storage metadata"


class DuplicateImageNames(Corrupt):
    """Two images of a store that is only read have one name."""

    text = "read-only image store assigns the same name to multiple images"


class DuplicateLayerNames(Corrupt):
    """Two layers of a store that is only read have one name."""

    text = "read-only layer store assigns the same name to multiple layers"


class InvalidBigDataName(InvalidInput):
    """The key of a big data item is empty."""

    text = "not a valid name for a big data item"


class DataUnknown(NotFound):
    """The record has no big data item of this name."""

    text = "file does not exist"


class SizeUnknown(NotFound):
    """The record has no item whose size could be told."""

    text = "size is not known"


class DigestUnknown(NotFound):
    """The record has no item whose digest could be told."""

    text = "could not compute digest of item"
