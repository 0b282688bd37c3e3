"""Images as their files hold them, decoded where they are needed."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from spvit_deploy.core.errors import DataError


@dataclass(frozen=True)
class Encoded:
    """An image that is not decoded yet.

    Attributes:
        content: a JPEG, PNG or other file that PIL reads.
        name: where it lies, for messages.
    """

    content: bytes
    name: str

    def decode(self) -> Image.Image:
        """The image.

        Raises:
            DataError: it is none, or damaged.
        """
        try:
            with warnings.catch_warnings():
                # Half way to what PIL refuses: large photographs.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(self.content)) as image:
                    image.load()
                    return image
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            said = "it is no image" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(
                f"{self.name} cannot be read: {said}.", "Mend or replace it in its place."
            ) from None
