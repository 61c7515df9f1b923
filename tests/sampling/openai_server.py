"""A real OpenAI-compatible server for tests: a tiny random Llama behind two paths of the API.

``python openai_server.py --port 0 --mode ok`` prints ``port N`` and serves until killed. A first path element
names another mode for that request (``/html/v1/completions``), so one process shows every misbehaviour in
`MODES`. Its sampling loop is its own: one full forward a token, no cache, no code of the package under test.
"""

import argparse
import json
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAME = "tiny-llama"
ALPHABET = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,"
VOCAB, EOS, CONTEXT = 2 + len(ALPHABET), 1, 96
MODES = {
    "ok": "as vLLM answers, token ids included",
    "no-ids": "knows nothing of return_token_ids and gives text alone, without stop strings",
    "strict": "refuses fields that the official API does not have, and gives no ids",
    "slow": "answers after 20 seconds",
    "drip": "sends one byte a second",
    "html": "a page with status 200",
    "html-models": "a page where the models should be",
    "not-json": "a body that is cut JSON",
    "malformed": "an answer without choices",
    "wrong-types": "token ids as strings",
    "odd-finish": "a finish reason of its own",
    "too-long": "more tokens than asked for",
    "truncated": "closes the connection in the middle of the body",
    "500-then-ok": "every request fails twice before it is served",
    "429-then-ok": "every request is put off once before it is served",
    "500": "always fails, with a page",
    "429": "always puts off",
    "key": "wants a key, and repeats a wrong one in its message",
    "no-echo": "refuses to echo",
    "empty": "serves no model",
    "two": "serves two models, to three clients at once",
}


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.35,  # large enough that the distribution is far from flat
        bos_token_id=0,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; <s> is 0 and </s> is 1."""
    vocab = {"<s>": 0, "</s>": 1} | {letter: i for i, letter in enumerate(ALPHABET, start=2)}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


class Refused(Exception):
    pass


class Sampler:
    def __init__(self) -> None:
        self.model = tiny_model()
        self.seen: set[tuple[int, ...]] = set()

    @torch.inference_mode()
    def logprobs(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def check(self, body: dict[str, Any]) -> list[int]:
        ids = body["prompt"]
        if not ids or not all(isinstance(i, int) for i in ids):
            raise Refused("the prompt must be a list of token ids")
        if bad := [i for i in ids if not 0 <= i < VOCAB]:
            raise Refused(f"Token id {bad[0]} is out of vocabulary")
        if len(ids) + body["max_tokens"] > CONTEXT:
            raise Refused(f"This model's maximum context length is {CONTEXT} tokens")
        return ids

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = self.check(body)
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        ids, logprobs, text, finish = [], [], "", "length"
        if body.get("echo"):
            rows = self.logprobs(prompt)
            logprobs = [None, *(float(rows[i, token]) for i, token in enumerate(prompt[1:]))]
        while len(ids) < body["max_tokens"]:
            row = self.logprobs(prompt + ids)[-1]
            token = self.pick(row, body, generator)
            ids.append(token)
            logprobs.append(float(row[token]))
            text += "" if token < 2 else ALPHABET[token - 2]
            if token == EOS or any(mark in text for mark in body.get("stop") or ()):
                finish = "stop"
                break
        if not body.get("include_stop_str_in_output"):
            for mark in body.get("stop") or ():
                text = text.split(mark)[0]
        cached = len(prompt) - 1 if tuple(prompt) in self.seen else 0
        self.seen.add(tuple(prompt))
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": {"token_logprobs": logprobs}}
        if body.get("return_token_ids"):
            choice["token_ids"] = ids
        usage = {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(ids),
            "total_tokens": len(prompt) + len(ids),
            "prompt_tokens_details": {"cached_tokens": cached} if cached else None,
        }
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": NAME,
            "choices": [choice],
            "usage": usage,
        }

    def pick(self, row: torch.Tensor, body: dict[str, Any], generator: torch.Generator) -> int:
        if not body["temperature"]:
            return int(row.argmax())
        probs = (row.double() / body["temperature"]).softmax(-1)
        order = probs.argsort(descending=True, stable=True)
        if body.get("top_k"):
            probs[order[body["top_k"] :]] = 0
            probs /= probs.sum()
        total = 0.0
        for place, token in enumerate(order.tolist()):
            if total >= body.get("top_p", 1.0):
                probs[order[place:]] = 0
                break
            total += float(probs[token])
        return int(torch.multinomial(probs, 1, generator=generator))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body leave together, after the request is counted as done
    disable_nagle_algorithm = True
    sampler: Sampler
    mode = "ok"
    lock = threading.Lock()
    crowd = threading.Condition()
    tries: ClassVar[Counter[tuple[str, bytes]]] = Counter()
    stats: ClassVar[defaultdict[str, Counter[str]]] = defaultdict(Counter)

    def log_message(self, *_: object) -> None:
        pass

    def route(self) -> tuple[str, str]:
        first, _, rest = self.path.lstrip("/").partition("/")
        return (first, f"/{rest}") if first in MODES else (self.mode, self.path)

    def do_GET(self) -> None:
        mode, path = self.route()
        if path == "/stats":
            self.send(200, self.stats[mode])
        elif path != "/v1/models":
            self.send(404, {"error": {"message": f"no {path} here"}})
        elif mode == "html-models":
            self.send(200, "<html><body>It works!</body></html>", "text/html")
        else:
            names = {"empty": [], "two": [NAME, "other-llama"]}.get(mode, [NAME])
            self.send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    def do_POST(self) -> None:
        mode, path = self.route()
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            attempt = self.tries[mode, raw]
            self.tries[mode, raw] += 1
            stats = self.stats[mode]
            stats.update(requests=1, now=1)
            stats["most_at_once"] = max(stats["most_at_once"], stats["now"])
        if mode == "two":
            self.gather(stats)
        try:
            if path == "/v1/completions":
                self.answer(mode, json.loads(raw), attempt)
            else:
                self.send(404, {"error": {"message": f"no {path} here"}})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has left
        finally:
            with self.lock:
                stats["now"] -= 1

    def gather(self, stats: Counter[str]) -> None:
        """Hold requests until three have stood here together: how many come at once is not left to chance."""
        with self.crowd:
            self.crowd.notify_all()
            self.crowd.wait_for(lambda: stats["most_at_once"] >= 3, timeout=5)

    def answer(self, mode: str, body: dict[str, Any], attempt: int) -> None:
        if refusal := self.refusal(mode, body, attempt):
            self.send(*refusal)
            return
        if mode == "slow":
            time.sleep(20)
        if mode in ("no-ids", "strict"):
            body = {**body, "return_token_ids": False, "include_stop_str_in_output": False}
        try:
            with self.lock:  # one forward at a time: the threads of a small machine would only get in the way
                answer = self.sampler.complete(body)
        except Refused as error:
            self.send(400, {"error": {"message": str(error), "type": "BadRequestError"}})
            return
        choice = answer["choices"][0]
        if mode == "malformed":
            del answer["choices"]
        elif mode == "wrong-types":
            choice["token_ids"] = [str(i) for i in choice["token_ids"]]
        elif mode == "odd-finish":
            choice["finish_reason"] = "content_filter"
        elif mode == "too-long":
            choice["token_ids"] += [5]
        if mode in ("not-json", "truncated", "drip"):
            self.send_partly(mode, json.dumps(answer).encode())
        elif mode == "html":
            self.send(200, "<html>\n<body>Welcome to the portal</body>\n</html>", "text/html")
        else:
            self.send(200, answer)

    def refusal(self, mode: str, body: dict[str, Any], attempt: int) -> tuple[Any, ...] | None:
        if mode == "500" or (mode == "500-then-ok" and attempt < 2):
            return 500, "<html>\n<h1>Internal Server Error</h1>\n</html>", "text/html"
        if mode == "429" or (mode == "429-then-ok" and attempt < 1):
            return (
                429,
                {"error": {"message": "Rate limit reached"}},
                "application/json",
                {"Retry-After-Ms": "20"},
            )
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if mode == "key" and given != "sk-right":
            return 401, {"error": {"message": f"Incorrect API key provided: {given}."}}
        if mode == "strict" and (odd := [key for key in body if key in ("return_token_ids", "top_k")]):
            return 400, {"error": {"message": f"Unrecognized request argument supplied: {odd[0]}"}}
        if mode in ("no-echo", "strict") and body.get("echo"):
            return 400, {"error": {"message": "echo is not supported"}}
        return None

    def send(
        self, status: int, body: Any, kind: str = "application/json", headers: dict[str, str] | None = None
    ) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def send_partly(self, mode: str, data: bytes) -> None:
        half = data[: len(data) // 2]
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(half) if mode == "not-json" else len(data)))
        self.end_headers()
        for piece in [bytes([byte]) for byte in half] if mode == "drip" else [half]:
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(1.0 if mode == "drip" else 0.0)
        self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--mode", choices=sorted(MODES), default="ok")
    options = parser.parse_args()
    torch.set_num_threads(1)
    Handler.sampler, Handler.mode = Sampler(), options.mode
    server = Server(("127.0.0.1", options.port), Handler)
    print(f"port {server.server_port}", flush=True)  # noqa: T201
    server.serve_forever()


if __name__ == "__main__":
    main()
