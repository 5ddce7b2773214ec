"""Fetches pip's own wheel from the package index, for a Python that came without ensurepip (Debian's)."""

import configparser
import hashlib
import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import List, NamedTuple, Optional, Tuple

from _bootstrap import Unable

PYPI = "https://pypi.org/simple"
TIMEOUT = 30.0
MAX_BYTES = 32 << 20
#: PEP 691; an index that knows only PEP 503's HTML answers with that.
ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"


class Wheel(NamedTuple):
    version: Tuple[int, ...]
    name: str
    url: str
    sha256: str


def fetch_pip(folder: str) -> str:
    """Path in `folder` of the newest pip wheel that runs here, checked against the index's sha256. Raises Unable."""
    index = _setting("index-url") or PYPI
    page = index.rstrip("/") + "/pip/"
    try:
        body, kind, page = _get(page)
        wheels = wheels_of_json(body, page) if "json" in kind else wheels_of_html(body, page)
        if not wheels:
            raise Unable("%s offers no pip wheel with a sha256" % page)
        wheel = max(wheels)
        data, _, _ = _get(wheel.url)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Unable(
            "the package index does not answer (%s: %s); connect once, then launches work offline" % (index, reason)
        ) from None
    if hashlib.sha256(data).hexdigest() != wheel.sha256:
        raise Unable("%s is not what the index says it is (sha256)" % wheel.url)
    path = os.path.join(folder, wheel.name)
    with open(path, "wb") as file:
        file.write(data)
    return path


def wheels_of_json(body: bytes, page: str) -> List[Wheel]:
    """Usable wheels on a page of PEP 691."""
    found = []
    for entry in json.loads(body.decode("utf-8"))["files"]:
        version = _version(entry["filename"])
        runs = _runs_here(entry.get("requires-python") or "")
        sha256 = entry.get("hashes", {}).get("sha256")
        if version and sha256 and runs and not entry.get("yanked"):
            found.append(Wheel(version, entry["filename"], urllib.parse.urljoin(page, entry["url"]), sha256))
    return found


def wheels_of_html(body: bytes, page: str) -> List[Wheel]:
    """Usable wheels on a page of PEP 503."""
    import html

    found = []
    for tag in re.findall(r"<a\s[^>]*>", body.decode("utf-8")):
        attributes = {name: html.unescape(value) for name, value in re.findall(r'([\w-]+)="([^"]*)"', tag)}
        url, _, fragment = attributes.get("href", "").partition("#")
        name = urllib.parse.unquote(url.rpartition("/")[2])
        version = _version(name)
        runs = _runs_here(attributes.get("data-requires-python", ""))
        if version and runs and fragment.startswith("sha256=") and "data-yanked" not in tag:
            found.append(Wheel(version, name, urllib.parse.urljoin(page, url), fragment[len("sha256=") :]))
    return found


def _version(name: str) -> Optional[Tuple[int, ...]]:
    """Of a final release; None for anything else."""
    match = re.match(r"^pip-(\d+(?:\.\d+)*)-py3-none-any\.whl$", name)
    return tuple(int(part) for part in match.group(1).split(".")) if match else None


def _runs_here(requires: str) -> bool:
    bounds = re.findall(r">=\s*(\d+)\.(\d+)", requires)
    return all(sys.version_info >= (int(major), int(minor)) for major, minor in bounds)


def _get(url: str) -> Tuple[bytes, str, str]:
    """Body, media type and final address."""
    certificates = _setting("cert")
    context = ssl.create_default_context(cafile=certificates) if certificates else None
    request = urllib.request.Request(url, headers={"Accept": ACCEPT})
    with urllib.request.urlopen(request, timeout=TIMEOUT, context=context) as answer:
        data: bytes = answer.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise Unable("%s is larger than %d MiB" % (url, MAX_BYTES >> 20))
        return data, answer.headers.get_content_type(), answer.geturl()


def _setting(name: str) -> Optional[str]:
    """pip's own setting: from its environment variable, else from its configuration files, the nearest first."""
    from_environment = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if from_environment:
        return from_environment
    home = os.path.expanduser("~")
    configured = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    paths = [os.path.join(configured, "pip", "pip.conf"), os.path.join(home, ".pip", "pip.conf"), "/etc/pip.conf"]
    if os.environ.get("PIP_CONFIG_FILE"):
        paths.insert(0, os.environ["PIP_CONFIG_FILE"])
    for path in paths:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except configparser.Error:
            continue
        for section in ("install", "global"):
            if parser.has_option(section, name):
                return parser.get(section, name)
    return None
