"""A page in a real browser: headless chromium, by the DevTools protocol over a pipe (no package needed for it)."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE = 20.0
#: What chromium would ask the network for by itself, and what an unprivileged container lacks.
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update"),
    *("--disable-crash-reporter", "--disable-breakpad", "--remote-debugging-pipe"),
)


class Browser:
    """`complaints` are console messages, exceptions and log entries, `requests` the addresses that pages asked for."""

    def __init__(self, program: str, profile: Path) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._events: list[str] = []
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        here, there = os.pipe(), os.pipe()
        # Clear of 3 and 4, which are where chromium looks for the pipe.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (here[0], there[1])]
        for fd in (here[0], there[1]):
            os.close(fd)
        self._write, self._read = here[1], there[0]
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        pipe = [(os.POSIX_SPAWN_DUP2, fd, at) for fd, at in zip(ends, (3, 4), strict=True)]
        self._pid = os.posix_spawn(
            program, [program, *_FLAGS, f"--user-data-dir={profile}"], os.environ, file_actions=[*null, *pipe]
        )
        for fd in ends:
            os.close(fd)

    def __enter__(self) -> Self:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._session = None
            self._send("Browser.close")
            self._wait(5.0)
        finally:
            os.close(self._write)
            os.close(self._read)

    def open(self, page: Path, scheme: str = "light", width: int = 1240) -> None:
        """Loads a file; what was told of the page before is forgotten."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=1600, deviceScaleFactor=1, mobile=False)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.complaints, self.requests, self._events = [], [], []
        self._call("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + PATIENCE
        while "Page.loadEventFired" not in self._events:
            self._take(self._receive(deadline))

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self) -> bytes:
        """The page as PNG, to be looked at."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    def _call(self, method: str, **parameters: Any) -> Any:
        number = self._send(method, **parameters)
        deadline = time.monotonic() + PATIENCE
        while (message := self._receive(deadline)).get("id") != number:
            self._take(message)
        assert "error" not in message, (method, message)
        return message["result"]

    def _send(self, method: str, **parameters: Any) -> int:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._number

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(self._read, 1 << 16) if ready else b""
            if not data:
                raise TimeoutError("chromium does not answer")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)  # type: ignore[no-any-return]

    def _take(self, message: dict[str, Any]) -> None:
        method, told = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(told))

    def _wait(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(self._pid, 9)
                os.waitpid(self._pid, 0)
                return
            time.sleep(0.02)
