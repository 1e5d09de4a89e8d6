"""Opens a page in Chromium and writes what it looks like, width by width, as one JSON object.

    python tests/browser_worker.py PAGE.html 1200 390

Needs PyQt6-WebEngine alone, which brings a whole Chromium in a wheel; see `make test-browser`.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")  # a container's root may not have one; the page is our own

from PyQt6.QtCore import QTimer, QUrl
from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

SETTLED, TOO_LONG = 500, 60_000  # milliseconds
# Where texts stand, drawing by drawing: what lies outside its drawing, and what lies upon another.
LOOK = """
(() => {
  const page = document.documentElement;
  const seen = {width: page.clientWidth, needed: page.scrollWidth, drawings: 0, texts: 0, outside: [], overlaps: []};
  for (const drawing of document.querySelectorAll("svg")) {
    const frame = drawing.getBoundingClientRect();
    if (!frame.width) continue;
    seen.drawings += 1;
    const texts = [...drawing.querySelectorAll("text")].filter(text => text.textContent.trim())
      .map(text => [text.textContent, text.getBoundingClientRect()]);
    seen.texts += texts.length;
    texts.forEach(([one, a], place) => {
      if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
        seen.outside.push(one);
      for (const [other, b] of texts.slice(place + 1)) {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 1 && high > 3) seen.overlaps.push([one, other]);
      }
    });
  }
  return JSON.stringify(seen);
})()
"""


class Requests(QWebEngineUrlRequestInterceptor):
    """Keeps the addresses that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def interceptRequest(self, info) -> None:
        """See Qt."""
        self.asked.append(info.requestUrl().toString())


class Page(QWebEnginePage):
    """Keeps what the browser complains of."""

    def __init__(self, view: QWebEngineView) -> None:
        super().__init__(view)
        self.said: list[str] = []

    def javaScriptConsoleMessage(self, level, message, line, source) -> None:
        """See Qt."""
        self.said.append(message)


def main(path: Path, widths: list[int]) -> None:
    """Print the JSON object, and nothing else; ends with status 1 where the page does not open."""
    app = QApplication(["browser"])
    view, requests = QWebEngineView(), Requests()
    page = Page(view)
    page.profile().setUrlRequestInterceptor(requests)
    view.setPage(page)
    looks: dict[int, dict] = {}

    def next_width() -> None:
        left = [width for width in widths if width not in looks]
        if not left:
            print(json.dumps({"requests": requests.asked, "console": page.said, "looks": looks}))
            app.quit()
            return
        view.resize(left[0], 1000)

        def keep(seen: str) -> None:
            looks[left[0]] = json.loads(seen)
            next_width()

        QTimer.singleShot(SETTLED, lambda: page.runJavaScript(LOOK, keep))

    page.loadFinished.connect(lambda good: next_width() if good else app.exit(1))
    QTimer.singleShot(TOO_LONG, lambda: app.exit(1))
    view.show()
    view.load(QUrl.fromLocalFile(str(path.resolve())))
    sys.exit(app.exec())


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(width) for width in sys.argv[2:]])
