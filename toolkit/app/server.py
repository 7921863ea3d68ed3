"""Server of `posters app`: a web page that shows the predictions of a model for uploaded posters.

    posters app --model RUN/model          then open http://127.0.0.1:7860

The page is made with gradio (page.py), and its contents come from service.py and html.py. The page sends no requests to
other machines: no analytics, no version check, no external fonts or scripts, no public link. Uploaded files are in
their own folder. They are deleted within an hour, and when the program ends.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from shards.console import for_people
from shards.errors import UserError, one_line
from shards.extras import require_extra
from shards.visuals.templates import render
from toolkit.app.browse import Split
from toolkit.app.decoder import MAX_MB
from toolkit.app.guard import Guard, check_root
from toolkit.app.options import AppOptions
from toolkit.app.service import PredictionService, text_removal
from toolkit.device.allocator import keep_freed_memory
from toolkit.model_folder.folder import load_model_folder

log = logging.getLogger(__name__)

#: Maximum number of sessions whose posters are kept in memory.
SESSIONS = 20
#: Signals that end the program. A closed terminal sends SIGHUP.
STOP_SIGNALS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
#: Start of the names of upload folders. The process id follows this prefix.
PREFIX = "posters-app-"
#: Environment variables to set before gradio is imported. They replace the values of the user.
GRADIO_ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
#: Languages of gradio's own texts (gradio 6.31).
LANGUAGES = (
    "ar", "ca", "ckb", "de", "en", "es", "et", "eu", "fa", "fi", "fr", "he", "hi", "id", "ja", "ko", "lt", "nb", "nl",
    "pl", "pt", "pt-BR", "ro", "ru", "sv", "ta", "th", "tr", "uk", "ur", "uz", "zh-CN", "zh-TW",
)  # fmt: skip
#: Texts of gradio's field for files. The page is in English, also in the browser of another language. Together they are
#: the name that screen readers say, which gradio sets to "Click to upload or drop files".
UPLOAD_WORDS = {
    "upload_text.drop_file": "Click to upload",
    "common.or": "or",
    "upload_text.click_to_upload": "drop files",
}
SYSTEM_FONT, SYSTEM_MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]


def run_app(options: AppOptions) -> int:
    """Serve the page until a signal ends the program. Return the exit status."""
    require_extra("app", "`posters app`", "gradio", load=False)
    root = check_root(options.root_path)
    _check_address(options.host, options.port)
    keep_freed_memory()
    with _upload_folder() as uploads:
        folder = load_model_folder(options.model)
        service = PredictionService(folder, *text_removal(options.text, options.fill, options.fill_model))
        for note in filter(None, (service.no_text, service.no_heat)):
            log.info(note)
        os.environ.update(GRADIO_ENVIRONMENT, GRADIO_TEMP_DIR=str(uploads))
        with redirect_stderr(for_people(sys.stderr)):  # gradio prints unescaped texts of visitors
            split = Split.of(options, folder) if options.shards is not None else None
            _serve(service, options.host, options.port, root, split)
    return 0


def _check_address(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise UserError("option-value", f"--port must be from 1 to 65535, not {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], found[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except OSError as error:
        raise UserError(
            "option-value",
            f"cannot listen on {host}, port {port} ({one_line(error)}); choose another address with --host and --port",
        ) from None
    if not ip_address(found[4][0]).is_loopback:
        log.warning("the page has no password: everybody who can reach %s can use it", host)


class _Ended(BaseException):
    """Raised by a signal that ends the program. It is a BaseException, so that libraries do not catch it."""


@contextmanager
def _upload_folder() -> Iterator[Path]:
    """Create a folder for uploads. Delete it at the end, also after errors and after STOP_SIGNALS.

    The first signal ends the program cleanly, also during its start. A second signal deletes the folder and ends the
    process immediately. A folder that remains after ``kill -9`` is deleted at the next start.
    """
    _delete_old_folders()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise _Ended
        _remove(folder)
        os._exit(128 + number)

    before = {
        number: signal.signal(number, on_signal)
        for number in STOP_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup sets SIGHUP to be ignored
    }
    try:
        yield folder
    except _Ended:
        raise SystemExit(128 + received[0]) from None
    finally:
        _remove(folder)
        for number, handler in before.items():
            signal.signal(number, handler)


def _remove(folder: Path) -> None:
    """Delete a folder. Retry, because running requests may still write into it."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
    log.warning("the upload folder %s could not be deleted; delete it yourself", folder)


def _delete_old_folders() -> None:
    """Delete the upload folders of this user if their process has ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        facts = folder.lstat()
        ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() if hasattr(os, "getuid") else False
        if ours and owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _serve(service: PredictionService, host: str, port: int, root: str, split: Split | None) -> None:
    from gradio import I18n
    from starlette.middleware import Middleware

    from toolkit.app.page import build_page  # gradio reads environment variables at import

    local = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    page = build_page(service, root if "://" in root else f"{local}{root}", split)
    page.launch(
        server_name=host,
        server_port=port,
        root_path=root,
        app_kwargs={"middleware": [Middleware(Guard, host=host, root=root)]},
        share=False,
        max_file_size=MAX_MB * 2**20,
        state_session_capacity=SESSIONS,
        i18n=I18n(**dict.fromkeys(LANGUAGES, UPLOAD_WORDS)),
        theme=_theme(),
        css=render("toolkit.app/app.css"),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    try:
        print(f"posters app    {local} (press Ctrl-C to stop)", flush=True)
        threading.Event().wait()
    except _Ended:
        pass  # a signal is the usual end
    finally:
        # Abort running requests, since an upload could be stored after the folder is deleted.
        page.server.force_exit = True
        logging.getLogger("uvicorn.error").disabled = True  # uvicorn logs each aborted request
        page.close(verbose=False)


def _theme() -> Any:
    from gradio.themes import Base

    theme = Base(primary_hue="orange", neutral_hue="stone", font=SYSTEM_FONT, font_mono=SYSTEM_MONO)
    return theme.set(
        body_background_fill="#f4f4f1",
        body_background_fill_dark="#17181b",
        block_background_fill="#ffffff",
        block_background_fill_dark="#212327",
        body_text_color_subdued="#686a70",
        body_text_color_subdued_dark="#a2a5ac",
        block_radius="0.7rem",
    )
