"""`posters app`: a page in the browser on which a model answers about posters that are dropped there.

    posters app --model RUN/model          then open http://127.0.0.1:7860

The page is gradio's (app_page.py); what it says is in app_answers.py and app_markup.py. Nothing is asked of other
machines: no analytics, no version check, no fonts or scripts from elsewhere, no public link. Uploaded files lie in a
folder of their own; they go within an hour, and with the program.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import tempfile
import threading
from importlib.util import find_spec
from ipaddress import ip_address
from types import FrameType
from typing import Any

from shards.errors import UserError, one_line
from toolkit.app_answers import MAX_MB, Answers, text_removal
from toolkit.app_markup import STYLE
from toolkit.memory import keep_freed_memory
from toolkit.model_folder import load_model_folder

log = logging.getLogger(__name__)

#: Pages whose posters are kept in memory.
SESSIONS = 20
#: Set before gradio is imported, and whatever the surroundings say.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
SYSTEM_FONT, SYSTEM_MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]


def run_app(args: argparse.Namespace) -> int:
    """Serve the page until it is stopped; returns the exit status."""
    missing = [name for name in ("gradio", "captum") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"`posters app` needs {' and '.join(missing)}: pip install -c constraints.txt -e '.[app]'"
        )
    _check_address(args.host, args.port)
    keep_freed_memory()
    folder = load_model_folder(args.model)
    answers = Answers(folder, *text_removal(args.text, args.fill, args.fill_model))
    for note in filter(None, (answers.no_text, answers.no_heat)):
        log.info(note)
    with tempfile.TemporaryDirectory(prefix="posters-app-") as uploads:
        os.environ.update(QUIET, GRADIO_TEMP_DIR=uploads)
        _serve(answers, args.host, args.port)
    return 0


def _check_address(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise UserError(f"--port must be from 1 to 65535, not {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], found[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}, port {port} ({one_line(error)}); choose others with --host and --port"
        ) from None
    if not ip_address(found[4][0]).is_loopback:
        log.warning("whoever reaches %s can use the page: it has no password", host)


def _serve(answers: Answers, host: str, port: int) -> None:
    from toolkit.app_page import build_page  # and with it gradio, which reads its environment now

    page, stop = build_page(answers), threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=MAX_MB * 2**20,
        state_session_capacity=SESSIONS,
        theme=_theme(),
        css=STYLE,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        shown = f"[{host}]" if ":" in host else host
        print(f"posters app    http://{shown}:{port} (Ctrl-C ends it)", flush=True)
        stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
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
