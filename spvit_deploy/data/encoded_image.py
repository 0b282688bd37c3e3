"""Images as their files hold them, decoded where they are needed."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from spvit_deploy.core.errors import DataError


@dataclass(frozen=True)
class EncodedImage:
    """An image that is not decoded yet.

    Attributes:
        content: Bytes of a JPEG, PNG or other file that PIL reads.
        name: Where it is stored, for messages.
    """

    content: bytes
    name: str

    def decode(self) -> Image.Image:
        """Decode the image.

        Raises:
            DataError: it is not an image, or damaged.
        """
        try:
            with warnings.catch_warnings():
                # PIL warns at half the size that it refuses; large photographs are that large.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(self.content)) as image:
                    image.load()
                    return image
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(
                f"{self.name} cannot be read: {reason}.", "Fix or replace it."
            ) from None
