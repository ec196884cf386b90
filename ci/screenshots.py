"""screenshots.py IMAGES PAGE...: opens pages of tornblk in headless Chromium, uses them by keyboard, and makes pictures.

Speaks Chromium's own protocol through a pipe, so that nothing has to be installed but Chromium. See ci/screenshots.
"""

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time

WIDTH = 1360
# Of one picture, in bytes.
MOST = 300 * 1024


class Chromium:
    def __init__(self):
        self.home = tempfile.mkdtemp(prefix="screenshots-")
        ours_out, theirs_in = os.pipe()
        theirs_out, ours_in = os.pipe()
        # The browser reads from 3 and writes to 4.
        command = [
            "chromium", "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
            "--no-first-run", "--hide-scrollbars", "--force-color-profile=srgb", f"--user-data-dir={self.home}",
            "about:blank",
        ]
        shell = ["sh", "-c", f'exec "$@" 3<&{theirs_out} 4>&{theirs_in}', "sh", *command]
        self.process = subprocess.Popen(
            shell, pass_fds=[theirs_out, theirs_in], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_out)
        os.close(theirs_in)
        self.reader, self.writer = ours_out, ours_in
        self.number, self.rest, self.events = 0, b"", []

    def message(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reader], [], [], max(0, end - time.monotonic()))
            if not ready:
                return None
            more = os.read(self.reader, 1 << 20)
            if not more:
                sys.exit("screenshots.py: chromium ended")
            self.rest += more
        text, self.rest = self.rest.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, session=None, **params):
        self.number += 1
        request = {"id": self.number, "method": method, "params": params}
        if session:
            request["sessionId"] = session
        data = json.dumps(request).encode() + b"\0"
        while data:
            data = data[os.write(self.writer, data):]
        while True:
            message = self.message(60)
            if message is None:
                sys.exit(f"screenshots.py: chromium did not answer {method}")
            if message.get("id") == self.number:
                if "error" in message:
                    sys.exit(f"screenshots.py: {method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def wait_for(self, method):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for i, event in enumerate(self.events):
                if event.get("method") == method:
                    return self.events.pop(i)
            message = self.message(1)
            if message:
                self.events.append(message)
        sys.exit(f"screenshots.py: {method} never came")

    def close(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


class Page:
    def __init__(self, chromium, path):
        self.chromium, self.path = chromium, path
        target = chromium.call("Target.createTarget", url="about:blank")["targetId"]
        self.target = target
        self.session = chromium.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=pathlib.Path(path).resolve().as_uri())
        chromium.wait_for("Page.loadEventFired")
        self.bad = []

    def call(self, method, **params):
        return self.chromium.call(method, session=self.session, **params)

    def value(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            self.bad.append(answer["exceptionDetails"].get("text", "an exception") + " in " + expression)
            return None
        return answer["result"].get("value")

    def key(self, key):
        text = key if len(key) == 1 else ""
        for kind in ["keyDown", "keyUp"]:
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text if kind == "keyDown" else "")

    def expect(self, what, wanted, expression):
        found = self.value(expression)
        if found != wanted:
            self.bad.append(f"{what}: {found!r}, not {wanted!r}")

    def use(self):
        """By keyboard, as somebody without a mouse does."""
        self.expect("the script runs", True, "document.documentElement.classList.contains('has-script')")
        self.expect("one heading", 1, "document.querySelectorAll('h1').length")
        findings = self.value("document.querySelectorAll('.finding').length")
        if not findings:
            self.bad.append("there is no finding")
        self.key("j")
        self.expect("j goes to the first finding", "f1", "document.activeElement.id")
        if findings > 1:
            self.key("j")
            self.expect("j goes on", "f2", "document.activeElement.id")
            self.key("k")
        self.expect("k goes back", "f1", "document.activeElement.id")
        self.key("?")
        self.expect("? shows the keys", False, "document.getElementById('keys').hidden")
        self.key("?")
        self.expect("? hides them", True, "document.getElementById('keys').hidden")
        self.expect("each picture has a name", 0, "document.querySelectorAll('svg.picture:not(:has(> title))').length")
        # Whatever can be clicked or scrolled can be reached, and shows that it was.
        self.expect(
            "Tab reaches all that can be used", 0,
            "[...document.querySelectorAll('button, a[href], summary, pre, .scroll')].filter(e => e.tabIndex < 0).length",
        )
        self.expect(
            "nothing is wider than the page", True,
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth",
        )
        self.key("d")
        first = self.value("document.documentElement.getAttribute('data-theme')")
        self.key("d")
        second = self.value("document.documentElement.getAttribute('data-theme')")
        if {first, second} != {"light", "dark"}:
            self.bad.append(f"d changes the theme: {first}, {second}")
        self.value("document.documentElement.removeAttribute('data-theme')")
        self.value("document.activeElement.blur(); window.scrollTo(0, 0)")

    def complaints(self):
        while message := self.chromium.message(0.2):
            self.chromium.events.append(message)
        for event in self.chromium.events:
            method, params = event.get("method"), event.get("params", {})
            if event.get("sessionId") != self.session:
                continue
            if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                self.bad.append("console: " + str(params["args"]))
            if method == "Runtime.exceptionThrown":
                self.bad.append("exception: " + str(params["exceptionDetails"].get("text")))
            if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                self.bad.append("log: " + params["entry"]["text"])
            if method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if url.startswith(("http:", "https:", "ws:")):
                    self.bad.append("asks for " + url)
        return self.bad

    def anywhere(self):
        """Where this machine keeps its files is nobody's business: only in what is shown."""
        folder = json.dumps(str(pathlib.Path(self.path).resolve().parent))
        program = json.dumps(os.environ.get("TORNBLK", "target/release/tornblk"))
        self.value(
            "document.querySelectorAll('.command code').forEach(code => { code.textContent ="
            f" code.textContent.replaceAll({folder}, 'tornblk-out').replaceAll({program}, 'tornblk'); }})"
        )

    def shoot(self, to, scheme, clip=None, height=None):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        box = {"x": 0, "y": 0, "width": WIDTH, "height": height or 900, "scale": 1}
        if clip:
            found = self.value(
                f"(() => {{ const r = document.querySelector('{clip}').getBoundingClientRect();"
                " return [r.x + window.scrollX, r.y + window.scrollY, r.width, r.height]; })()"
            )
            x, y, width, tall = found
            box = {"x": x, "y": y, "width": width, "height": min(tall, height or tall), "scale": 1}
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=box)
        data = base64.b64decode(answer["data"])
        to.write_bytes(data)
        if len(data) > MOST:
            self.bad.append(f"{to} has {len(data)} bytes, more than {MOST}")
        print(f"{to}: {len(data) // 1024} KiB")

    def tall(self):
        return self.value("document.documentElement.scrollHeight")


def main():
    images, pages = pathlib.Path(sys.argv[1]), sys.argv[2:]
    chromium = Chromium()
    bad = []
    try:
        for number, path in enumerate(pages):
            page = Page(chromium, path)
            page.use()
            page.anywhere()
            if number == 0:
                page.shoot(images / "report-light.png", "light", height=min(page.tall(), 1500))
                page.shoot(images / "report-dark.png", "dark", height=min(page.tall(), 1500))
            else:
                name = pathlib.Path(path).stem
                page.shoot(images / f"finding-{name}.png", "light" if number == 1 else "dark", clip="#f1", height=1100)
            bad += [f"{path}: {text}" for text in page.complaints()]
    finally:
        chromium.close()
    for text in bad:
        print(f"screenshots.py: {text}", file=sys.stderr)
    sys.exit(1 if bad else 0)


main()
