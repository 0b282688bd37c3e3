"""A picture of a page, by an installed Chromium."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

from spvit_deploy.core.files import write_bytes

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Pixels kept below the last thing drawn.
_MARGIN = 32


def render_png(page: Path, picture: Path, size: tuple[int, int] = (1360, 10000)) -> bool:
    """Take a picture of a page with an installed Chromium, cut where the page ends.

    Args:
        page: of HTML.
        picture: to write.
        size: width and most height, pixels.

    Returns:
        False where there is none, or it fails.
    """
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch, "shot.png")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--no-first-run", "--disable-background-networking", "--disable-sync",
            "--disable-component-update", f"--user-data-dir={scratch}/profile",
            f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=8000",
            f"--screenshot={shot}", page.absolute().as_uri(),
        ]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=90)
        except (subprocess.SubprocessError, OSError):
            return False
        if not shot.is_file():
            return False
        write_bytes(picture, _cut(shot))
    return True


def _cut(shot: Path) -> bytes:
    """The picture without what lies below the page, where every pixel is like the last."""
    with Image.open(shot) as image:
        whole = image.convert("RGB")
    empty = Image.new("RGB", whole.size, whole.getpixel((0, whole.height - 1)))
    box = ImageChops.difference(whole, empty).getbbox()
    end = min(whole.height, box[3] + _MARGIN) if box else whole.height
    target = io.BytesIO()
    whole.crop((0, 0, whole.width, end)).save(target, "png", optimize=True)
    return target.getvalue()
