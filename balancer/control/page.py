"""The page at the metrics' address: one file, which draws what events tell of.

Its own rules name the script that may run, and nothing is loaded from elsewhere.
"""

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources

from common.control.forms import Asked, Content, Handler


def pages() -> Mapping[str, Handler]:
    """What is got by which path."""
    whole = page()

    async def show(_: Asked) -> Content:
        return whole

    return {"/": show}


def page() -> Content:
    """The page, with what its own rules say of its script."""
    text = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    script = text.split("<script>", 1)[1].split("</script>", 1)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Content(text.replace("{{script}}", f"sha256-{digest}").encode(),
                   "text/html; charset=utf-8")
