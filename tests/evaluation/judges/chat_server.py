"""A real HTTP server on loopback that speaks the chat-completions protocol and misbehaves as told."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[BaseHTTPRequestHandler], None]


def send(handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def completion(content: Any, finish_reason: str = "stop") -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return raw(json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}).encode())


def raw(body: bytes, content_type: str = "application/json") -> Reply:
    return lambda handler: send(handler, body, headers={"Content-Type": content_type})


def fault(status: int, message: str = "no", **headers: str) -> Reply:
    # Of the client's own, so that tests don't wait.
    names = {name.replace("_", "-"): value for name, value in (headers or {"retry_after_ms": "10"}).items()}
    return lambda handler: send(handler, json.dumps({"error": {"message": message}}).encode(), status=status, headers=names)


def cut_connection(handler: BaseHTTPRequestHandler) -> None:
    """Promise a body, send half a reply and hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def text_of(content: Any) -> str:
    """The words of a message, whose parts may hold images too."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


@dataclass
class ChatServer:
    """Answers ``echo: <prompt>`` or by another rule of the prompt, or of the request, after the replies that are scripted for a prompt."""

    url: str = ""
    answer: Callable[[str], str] = "echo: {}".format
    answer_request: Callable[[dict[str, Any]], str] | None = None
    scripts: dict[str, list[Reply]] = field(default_factory=dict)
    delay: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self) -> Counter[str]:
        """How often each prompt came."""
        return Counter(text_of(request["messages"][0]["content"]) for request in self.requests)

    def _answer(self, request: dict[str, Any], prompt: str) -> str:
        return self.answer(prompt) if self.answer_request is None else self.answer_request(request)

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        assert handler.path == "/v1/chat/completions"
        prompt = text_of(request["messages"][0]["content"])
        with self.lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            self.keys.add(handler.headers["Authorization"])
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            script = self.scripts.get(prompt, [])
            reply = script.pop(0) if script else completion(self._answer(request, prompt))
        time.sleep(self.delay)
        with self.lock:
            self.at_once -= 1
        reply(handler)


@contextmanager
def run_chat_server() -> Iterator[ChatServer]:
    chat = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            chat.handle(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
