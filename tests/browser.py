"""A headless Chromium, driven over its debugging protocol: open a page, ask it, hear its errors."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
PATIENCE = 120  # seconds, for a machine that is busy with other work


class Browser:
    """One page of a Chromium with a profile of its own in `home`; use it in a with statement."""

    def __init__(self, home: Path) -> None:
        port = ("--remote-debugging-port=0", f"--user-data-dir={home}", "about:blank")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([CHROMIUM, *FLAGS, *port], **quiet)
        self.file, self.count, self.errors = home / "DevToolsActivePort", 0, []

    def __enter__(self) -> "Browser":
        import websocket

        number = wait(lambda: self.file.is_file() and self.file.read_text().split("\n")[0])
        pages = json.load(urlopen(f"http://127.0.0.1:{number}/json/list"))
        address = next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page")
        self.socket = websocket.create_connection(address, PATIENCE, suppress_origin=True)
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(PATIENCE)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; errors that the page reports meanwhile are kept."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            event = message.get("params", {})
            bad = message.get("method") == "Runtime.exceptionThrown"
            bad |= message.get("method") == "Log.entryAdded" and event["entry"]["level"] == "error"
            bad |= message.get("method") == "Runtime.consoleAPICalled" and event["type"] == "error"
            self.errors += [json.dumps(event)[:400]] * bad
            if message.get("id") == self.count:
                return message.get("result", message)

    def open(self, address: str) -> None:
        """Open an address and wait until it and its scripts are loaded."""
        self.call("Page.navigate", url=address)
        wait(
            lambda: (
                self.ask("document.readyState") == "complete"
                and self.ask("location.href") == address
            )
        )

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get(
            "value"
        )


def wait(ready: Any) -> Any:
    """What `ready` returns once it is true.  Raises TimeoutError where it never is."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if value := ready():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"not ready after {PATIENCE} s")
