"""A real server in a thread of the test's own process."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from cutaway.app.service import Service


@dataclass(frozen=True)
class Running:
    port: int
    app: FastAPI

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def service(self) -> Service:
        return self.app.state.service


@contextmanager
def running(app: FastAPI) -> Iterator[Running]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Running(listener.getsockname()[1], app)
        finally:
            server.should_exit = True
            thread.join()


def settle(service: Service, seconds: float = 10.0) -> None:
    """Wait until no row is at work or waiting; fails when one is stuck."""
    end = time.monotonic() + seconds
    while service.load:
        assert time.monotonic() < end, f"{service.load} rows are stuck"
        time.sleep(0.01)
    with service.borrowed():
        pass  # rows end inside a turn: only after it are its edits off the model
