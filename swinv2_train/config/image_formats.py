"""Extensions of image files. Listed here because commands need them without numpy and torch."""

from __future__ import annotations

FIRST_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "tif", "tiff")
"""Extensions that every version read. They come first wherever several files compete for one name."""
IMAGE_EXTENSIONS = (*FIRST_EXTENSIONS, "jpe", "jfif", "bmp", "gif", "avif", "jp2")
"""Extensions of the files and shard members that are read as images, in lower case. Of a GIF, the first frame is read.

The list does not depend on the installed libraries, so all hosts count the same samples. Decoders of the user
(`own_parts`) add theirs.
"""
