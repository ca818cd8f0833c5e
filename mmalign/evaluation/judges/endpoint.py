"""A judge behind an OpenAI-compatible endpoint: a hosted model, or a server such as vLLM's."""

import ipaddress
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import yaml

from mmalign.errors import UserError
from mmalign.evaluation.judges.cache import JudgementCache
from mmalign.evaluation.rows import read_completion

logger = logging.getLogger(__name__)

DECODING: Mapping[str, Any] = {"temperature": 0, "max_tokens": 1024}
# What a request says anyway, or what its reply could not be read with.
_RESERVED = ("model", "messages", "stream", "n")
# How endpoints say that they don't know a setting, or not this value of it.
_UNKNOWN = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|only the default|extra (?:inputs|fields)",
    re.IGNORECASE,
)
KEY_VARIABLE = "OPENAI_API_KEY"
EXAMPLE_URL = "http://127.0.0.1:8000/v1"
# The endpoint refuses whoever asks: asking anything else is vain.
_REFUSES_ALL = {401, 403, 404}
# A shorter key is a word that stands for none.
MIN_SECRET = 16
# So many prompts failed for good that the endpoint itself is at fault.
_MAX_FAILED = 8
# Seconds before a prompt is asked again whose reply was empty or none, doubled each time: the client's own waits after other failures.
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0


def text_request(prompt: str) -> Mapping[str, Any]:
    """The body of a request that asks for a reply to a text."""
    return {"messages": [{"role": "user", "content": prompt}]}


class OpenAIJudge:
    """Asks a model through the chat-completions protocol; each judgement is cached as it comes."""

    def __init__(
        self,
        *,
        url: str,
        model: str,
        cache: Path,
        api_key_env: str | None = KEY_VARIABLE,
        decoding: Mapping[str, Any] = DECODING,
        concurrency: int = 8,
        max_retries: int = 10,
        timeout: float = 120.0,
        option: str = "decoding",
        request: Callable[[str], Mapping[str, Any]] = text_request,
        accept_empty: bool = False,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: The endpoint's base, such as ``http://127.0.0.1:8000/v1``.
            model: The model's name there. Name a dated version where there is one: a moving name makes results incomparable.
            cache: JSONL file of judgements. The url is no part of their key: the same model on another port is the same judge.
            api_key_env: Environment variable that holds the key; None for an endpoint that needs none.
            decoding: Sent with every request as it is, and part of the key.
            concurrency: Most requests at once.
            max_retries: Times that the client sends a request again which failed in passing, after waits that double or that the server
                names; and times that a prompt is asked again whose reply was empty or none.
            timeout: Seconds that a request may take.
            option: What the user sets ``decoding`` by, for advice.
            request: Makes the body of a prompt's request, ``messages`` in it; the decoding settings go over what else it says.
            accept_empty: Whether a reply without words is an answer: a model that is evaluated may say nothing.

        Raises:
            ValueError: If the client is not installed, the key's variable is not set, ``url`` is no address, or ``concurrency``,
                ``max_retries`` or ``timeout`` is out of range.
        """
        if concurrency < 1 or max_retries < 0 or timeout <= 0:
            raise UserError(
                f"concurrency is {concurrency}, max_retries {max_retries} and timeout {timeout}; expected at least 1, 0 and more than 0"
            )
        if urlparse(url).scheme not in ("http", "https"):
            raise UserError(f"the endpoint's address is {url!r}; expected its base, such as {EXAMPLE_URL}")
        self._model, self._decoding, self._option, self._body = model, dict(decoding), option, request
        self._concurrency, self._max_retries, self._accept_empty = concurrency, max_retries, accept_empty
        self._key = _read_key(api_key_env)
        self._client = _build_client(url, self._key, timeout=timeout, max_retries=max_retries)
        self._cache = JudgementCache(cache, judge={"model": model, "decoding": self._decoding})

    @property
    def name(self) -> str:
        """The model's name at the endpoint."""
        return self._model

    @property
    def decoding(self) -> Mapping[str, Any]:
        """What is sent with every request."""
        return dict(self._decoding)

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """Answer each prompt; the order is kept, and equal prompts are asked once.

        Raises:
            ValueError: If prompts are left without an answer after all retries. What was answered is in the cache.
        """
        missing = self._cache.missing(prompts)
        failures = _Failures()
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                list(pool.map(lambda prompt: self._settle(prompt, failures), missing))
            except BaseException:
                # An interrupt: requests on their way are waited for, as they are paid for; no others are sent.
                failures.stop.set()
                raise
        left = self._cache.missing(prompts)
        if left:
            total = len(dict.fromkeys(prompts))
            raise UserError(
                f"{self._model} left {len(left)} of {total} prompts unanswered; {total - len(left)} are answered and cached in "
                f"{self._cache.path}, and running again resumes with the rest. First reason: {failures.reasons[0]}"
            )
        limit = "max_completion_tokens" if "max_completion_tokens" in self._decoding else "max_tokens"
        self._cache.warn_of_cut(prompts, advice=f"raise {limit} in {self._option}")
        return [self._cache[prompt] for prompt in prompts]

    def was_cut(self, prompt: str) -> bool:
        """Whether the reply to a prompt that was asked ended at its longest length."""
        return self._cache.was_cut(prompt)

    def _settle(self, prompt: str, failures: "_Failures") -> None:
        """Ask until there is an answer, which goes to the cache, or a failure."""
        for left in range(self._max_retries, -1, -1):
            if failures.stop.is_set():
                return
            outcome = self._request(prompt)
            if isinstance(outcome, _Answer):
                self._cache.add(prompt, outcome.text, cut=outcome.cut)
                return
            if not (outcome.ask_again and left):
                failures.add(outcome)
                return
            logger.info("%s: %s; asked again", self._model, outcome.reason)
            # Some servers say that they are busy in the body of a reply that is well by its status.
            failures.stop.wait(min(FIRST_WAIT * 2 ** (self._max_retries - left), LONGEST_WAIT))

    def _request(self, prompt: str) -> "_Answer | _Failure":
        from openai import APIConnectionError, APIStatusError

        try:
            # The decoding settings pass untouched, since endpoints differ in the names that they know. The raw response, because
            # the client's own reading lets a reply of another shape through.
            body = dict(self._body(prompt))
            if "max_completion_tokens" in self._decoding:
                body.pop("max_tokens", None)
            reply = self._client.chat.completions.with_raw_response.create(
                model=self._model, messages=body.pop("messages"), extra_body={**body, **self._decoding}
            )
        except APIStatusError as error:
            reason = _shorten(self._redact(f"HTTP {error.status_code}: {error.message}"))
            if error.status_code == 404:
                reason += f"; asked at {error.request.url}, of a base such as {EXAMPLE_URL}, for the model {self._model}"
            refused = find_refused(error.message, self._decoding) if error.status_code in (400, 422) else None
            if refused is not None:
                reason += f"; set {self._option} to '{advise_decoding(self._decoding, refused)}'"
            return _Failure(reason, refuses_all=error.status_code in _REFUSES_ALL or refused is not None)
        except APIConnectionError as error:
            # A time-out is one too. The cause says what the client's "Connection error." leaves out.
            return _Failure(_shorten(self._redact(f"{error.request.url}: {error} {error.__cause__ or ''}")))
        return _read_reply(self._redact(reply.http_response.text), accept_empty=self._accept_empty)

    def _redact(self, text: str) -> str:
        """Some servers quote the key that they refuse; it must not reach a log or a file.

        Local servers take any word for a key (EMPTY, none): no secret, and an answer may hold it.
        """
        return text if self._key is None or len(self._key) < MIN_SECRET else text.replace(self._key, "[key]")


class _Answer(NamedTuple):
    text: str
    cut: bool


class _Failure(NamedTuple):
    reason: str
    ask_again: bool = False
    refuses_all: bool = False


@dataclass
class _Failures:
    """What failed for good, and whether to stop asking."""

    stop: threading.Event = field(default_factory=threading.Event)
    reasons: list[str] = field(default_factory=list)

    def add(self, failure: _Failure) -> None:
        self.reasons.append(failure.reason)
        if failure.refuses_all or len(self.reasons) >= _MAX_FAILED:
            self.stop.set()


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise UserError(
            f"the environment variable {variable} is not set; set it to the endpoint's key, or name none if it needs none "
            "(--judge-key-env none or --endpoint-key-env none, or another variable's name)"
        )
    return key


def choose_key_variable(choice: str, url: str) -> str | None:
    """Return the environment variable that holds the key, or None where none is sent.

    Args:
        choice: A variable's name, "none", or "auto": OPENAI_API_KEY, or none where that is not set or empty and the server is on this
            machine or in its network.
        url: The endpoint's base.
    """
    if choice == "none":
        return None
    if choice != "auto":
        return choice
    return None if not os.environ.get(KEY_VARIABLE) and _is_near(url) else KEY_VARIABLE


def _is_near(url: str) -> bool:
    host = urlparse(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # A name without a dot is one of this network: localhost, or a container's.
        return "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return address.is_loopback or address.is_private


def merge_decoding(given: Mapping[str, Any], *, usual: Mapping[str, Any] = DECODING) -> dict[str, Any]:
    """Put the user's settings over the usual ones; what is null is not sent, and either name of the longest reply replaces the other.

    Raises:
        ValueError: If a setting is one that a request says anyway.
    """
    if taken := [name for name in given if name in _RESERVED]:
        raise UserError(
            f"the judge's decoding holds {', '.join(taken)}, which can't be set; expected such as {{max_completion_tokens: 4096}}"
        )
    kept = {name: value for name, value in usual.items() if name != "max_tokens" or "max_completion_tokens" not in given}
    return {name: value for name, value in {**kept, **given}.items() if value is not None}


def find_refused(message: str, decoding: Mapping[str, Any]) -> str | None:
    """Return the setting that an endpoint's message says it does not take."""
    if not _UNKNOWN.search(message):
        return None
    # The first one named: what comes behind it is advice.
    places = {name: found.start() for name in decoding if (found := re.search(rf"\b{re.escape(name)}\b", message))}
    return min(places, key=lambda name: places[name]) if places else None


def advise_decoding(decoding: Mapping[str, Any], refused: str) -> str:
    """Return the settings without the refused one, as an option's text: a limit goes by its other name, anything else is not sent."""
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}.get(refused)
    settings = {name: value for name, value in decoding.items() if name != refused}
    settings |= {refused: None} if other is None else {other: decoding[refused]}
    return str(yaml.safe_dump(settings, default_flow_style=True, sort_keys=False, width=1000)).strip()


def _build_client(url: str, key: str | None, *, timeout: float, max_retries: int) -> Any:
    try:
        from openai import OpenAI
    except ImportError as error:
        raise UserError("a model behind an endpoint needs the openai client: pip install 'mmalign[judge]'") from error
    # The client refuses to be without a key.
    return OpenAI(base_url=url, api_key=key or "none", timeout=timeout, max_retries=max_retries)


def _read_reply(text: str, *, accept_empty: bool) -> _Answer | _Failure:
    """Read a chat completion; a reply without words is asked for again, unless it spent its whole length on thoughts.

    A server that sends reasoning apart may send it alone: a reply that ended by itself is then taken for the answer (the model did not
    mark where its reasoning ends), one that ended at its longest length for an unfinished one.
    """
    try:
        reply = read_completion(json.loads(text))
    except ValueError as error:
        return _Failure(f"a reply that is no chat completion ({error}): {text[:200]!r}", ask_again=True)
    cut = reply.at_limit is True
    if reply.content is not None and reply.content.strip():
        return _Answer(reply.content, cut=cut)
    if reply.reasoning and reply.reasoning.strip():
        return _Answer(f"<think>\n{reply.reasoning}" if cut else reply.reasoning, cut=cut)
    if accept_empty:
        return _Answer("", cut=cut)
    if cut:
        return _Failure("a reply without words that ended at its longest length: raise it in decoding")
    return _Failure("a reply without words", ask_again=True)


def _shorten(text: str) -> str:
    return " ".join(text.split())[:500]
