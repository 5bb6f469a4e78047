"""A headless Chromium for tests: found, or installed if that takes seconds; otherwise the test is skipped."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_SECONDS = 45  # for updating the package list, and for downloading the packages
_PACKAGES = ("chromium", "chromium-driver", "fonts-dejavu-core")


@functools.cache
def found() -> tuple[str, str] | str:
    """The browser and its driver, or the reason why there are none."""
    if pair := _on_path():
        return pair
    apt = shutil.which("apt-get")
    if apt is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "no Chromium and no chromedriver on the PATH, and no way to install them (apt-get, as root)"
    install = ("install", "-y", "-qq", "--no-install-recommends", *_PACKAGES)
    # Only steps that may be interrupted have a timeout: interrupted unpacking would break every later installation.
    steps = {("update", "-qq"): _SECONDS, (*install, "--download-only"): _SECONDS, install: None}
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        for arguments, seconds in steps.items():
            subprocess.run([apt, *arguments], check=True, capture_output=True, timeout=seconds, env=environment)
    except (subprocess.SubprocessError, OSError) as error:
        return f"Chromium could not be installed: {error}"
    return _on_path() or "Chromium was installed and is not on the PATH"


def _on_path() -> tuple[str, str] | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def chromium(*, dark: bool = False, size: str = "1280,860") -> Iterator[Any]:
    """Runs Chromium and yields selenium's driver; skips the test if there is no Chromium."""
    pair = found()
    if isinstance(pair, str):
        pytest.skip(pair)
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    browser, driver = pair
    options = ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--force-device-scale-factor=1",
            "--lang=en",
            f"--window-size={size}",
            f"--user-data-dir={Path(profile) / 'profile'}",
            *(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []),
        ):
            options.add_argument(flag)
        page = Chrome(options=options, service=Service(driver))  # explicit, so that selenium does not download one
        try:
            yield page
        finally:
            page.quit()
