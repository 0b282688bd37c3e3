"""Take an image of an HTML page with an installed Chromium."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.progress import stderr_console

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Pixels: width and greatest height of an image, and what is kept below the last thing drawn.
_WIDTH, _HEIGHT, _MARGIN = 1360, 10000, 32
# Seconds that the browser may take.
_TIMEOUT = 90


def render_png(page: Path, image: Path) -> bool:
    """Write a PNG of a page, cut where the page ends; print a line if no browser can.

    Returns:
        Whether it was written.

    Raises:
        StorageError: The disk is full, or the place is not writable.
    """
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch, "shot.png")
        if browser is not None and _take_shot(browser, page, shot):
            write_bytes(image, _cropped(shot))
            return True
    stderr_console().print(
        f"{image.name} was not written: no Chromium that works. Install Chromium or Chrome.",
        highlight=False,
    )
    return False


def _take_shot(browser: str, page: Path, shot: Path) -> bool:
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", "--disable-sync",
        "--disable-component-update", f"--user-data-dir={shot.parent}/profile",
        f"--window-size={_WIDTH},{_HEIGHT}", "--virtual-time-budget=8000",
        f"--screenshot={shot}", page.absolute().as_uri(),
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT)
    except (subprocess.SubprocessError, OSError):
        return False
    return shot.is_file()


def _cropped(shot: Path) -> bytes:
    """Cut off the rows below the page, where every pixel is like the last one."""
    with Image.open(shot) as image:
        whole = image.convert("RGB")
    empty = Image.new("RGB", whole.size, whole.getpixel((0, whole.height - 1)))
    box = ImageChops.difference(whole, empty).getbbox()
    end = min(whole.height, box[3] + _MARGIN) if box else whole.height
    target = io.BytesIO()
    whole.crop((0, 0, whole.width, end)).save(target, "png", optimize=True)
    return target.getvalue()
