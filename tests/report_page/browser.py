"""Headless Chromium over its debugging pipe: JSON messages that end with NUL."""

import json
import os
import select
import subprocess
from pathlib import Path


class Browser:
    """A browser with one tab; `events` are those of the page that was opened last."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, self.commands = os.pipe()
        self.answers, theirs_out = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        # Chromium reads from descriptor 3 and writes to 4
        pipes = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", pipes, program, *flags, "--remote-debugging-pipe"],
            pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.buffer, self.number, self.events, self.session = b"", 0, [], {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict:
        while b"\0" not in self.buffer:
            assert select.select([self.answers], [], [], 60)[0], "the browser says nothing"
            part = os.read(self.answers, 1 << 20)
            assert part, "the browser has ended"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params: object) -> dict:
        """What a command returns."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": params, **self.session}
        os.write(self.commands, json.dumps(command).encode() + b"\0")
        while (message := self._message()).get("id") != self.number:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def open(self, path: Path, width: int, *, dark: bool = False) -> None:
        """Load a page at a width, as a reader sees it who prefers light or dark."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())

    def evaluate(self, script: str) -> object:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """A key, as a keyboard sends it to what has the focus."""
        known = {"key": key, "windowsVirtualKeyCode": code, "text": "\r" if key == "Enter" else key}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **known)

    def said(self) -> list[str]:
        """What the console says of the page."""
        self.evaluate("0")  # what came before has arrived then
        methods = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event) for event in self.events if event["method"] in methods]

    def requested(self) -> list[str]:
        """Addresses that the page asked for."""
        sent = (e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent")
        return [params["request"]["url"] for params in sent]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
