"""llama.cpp as a peer: through its Python bindings, and through its server."""

from __future__ import annotations

import json
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request as Call
from urllib.request import urlopen

from dspark.core import SamplingParams
from dspark.errors import ConfigError, DataError
from dspark.evaluation.answers import Answer, answer_elsewhere
from dspark.evaluation.peers import Peer
from dspark.targets.target import Target

BINDINGS, SERVER = "llama-cpp-python", "llama-server"
ANSWER_WITHIN_S = 600.0


def check_gguf(path: Path, target: Target) -> str:
    """Quantisation of a GGUF file of the target, such as "Q8_0".

    Raises:
        DataError: it cannot be read, or is another model's.
    """
    from gguf import GGUFReader, LlamaFileType

    try:
        fields = GGUFReader(path).fields
        family = fields["general.architecture"].contents()
        shape = [
            int(fields[f"{family}.{k}"].contents()) for k in ("block_count", "embedding_length")
        ]
        kind = LlamaFileType(int(fields["general.file_type"].contents())).name
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise DataError(
            f"cannot read {path} as a GGUF file",
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:120]}",
            fix="Give a GGUF file of the target",
        ) from error
    if shape != [target.spec.num_layers, target.spec.hidden_size]:
        raise DataError(
            f"{path} is another model than the target",
            found=f"{shape[0]} layers of {shape[1]}, the target has {target.spec.num_layers} of "
            f"{target.spec.hidden_size}",
            fix="Give a GGUF file of the same model",
        )
    return kind.removeprefix("MOSTLY_").removeprefix("ALL_")


# ---- bindings -----------------------------------------------------------------------------------


def bindings(gguf: Path | None, target: Target, room: int, threads: int) -> Peer:
    """llama.cpp in this process, on the same threads.

    Args:
        gguf: the target's weights for it.
        room: longest text, prompt included, in tokens.

    Raises:
        DataError: the file is not what it should be.
    """
    kind = "" if gguf is None else check_gguf(gguf, target)
    try:
        import llama_cpp
    except ImportError:
        return Peer(BINDINGS, missing=f"{BINDINGS} is not installed")
    except (OSError, RuntimeError) as error:  # installed, but built for another machine
        return Peer(BINDINGS, missing=f"{BINDINGS} does not load: {_short(error)}")
    if gguf is None:
        return Peer(BINDINGS, missing="no GGUF of the target was given (--gguf)")
    try:
        model = llama_cpp.Llama(
            str(gguf), n_ctx=room, n_threads=threads, n_threads_batch=threads, verbose=False
        )
    except ValueError as error:
        fix = "Make the file again for this version of llama.cpp"
        raise DataError(f"{BINDINGS} cannot load {gguf}", found=_short(error), fix=fix) from error

    def ask(ids: list[int], params: SamplingParams) -> Answer:
        return answer_elsewhere(lambda: _generate(model, target, ids, params), ids, params)

    version = str(llama_cpp.__version__)
    return Peer(BINDINGS, ask, version=version, note=f"{BINDINGS}: {gguf.name}, {kind}")


def _generate(model: Any, target: Target, ids: list[int], params: SamplingParams) -> list[int]:
    model.reset()  # or the beginning that two prompts share would cost the second one nothing
    new_ids: list[int] = []
    for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
        new_ids.append(int(token))
        if token in target.stop_ids or len(new_ids) == params.max_new_tokens:
            break
    return new_ids


# ---- server -------------------------------------------------------------------------------------


def server(url: str | None) -> Peer:
    """A llama.cpp server that runs already, on threads of its own choice.

    Raises:
        ConfigError: the address is none.
    """
    if url is None:
        return Peer(SERVER, missing="no server was given (--llama-server)")
    check_url(url)
    url = url.rstrip("/")
    try:
        facts = _call(f"{url}/props", None)
    except DataError as error:
        return Peer(SERVER, missing=f"{url} does not answer: {error.found}")
    model = str(facts.get("model_path") or "an unnamed model").replace("\\", "/").rpartition("/")[2]

    def ask(ids: list[int], params: SamplingParams) -> Answer:
        return answer_elsewhere(lambda: _complete(url, ids, params), ids, params)

    version = str(facts.get("build_info") or "unknown")
    return Peer(SERVER, ask, version=version, note=f"{SERVER}: {model}")


def check_url(url: str) -> None:
    """Refuse what is no address of a server.

    Raises:
        ConfigError: it does not begin with http:// or https:// and a host.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # such as a bracket that is not closed
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        fix = "Write --llama-server http://127.0.0.1:8080"
        raise ConfigError("The server's address is not valid", found=url, fix=fix)


def _complete(url: str, ids: list[int], params: SamplingParams) -> list[int]:
    wish = {
        "prompt": ids,
        "n_predict": params.max_new_tokens,
        "temperature": 0,
        "repeat_penalty": 1.0,
        "cache_prompt": False,
        "return_tokens": True,
    }
    new_ids = _call(f"{url}/completion", wish).get("tokens")
    if not isinstance(new_ids, list) or not new_ids or not all(type(i) is int for i in new_ids):
        fix = "Use a llama.cpp server that knows return_tokens"
        raise DataError(f"{url} gave no token ids", fix=fix)
    return new_ids


def _call(address: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """A JSON object from a server.

    Raises:
        DataError: it gives none.
    """
    data = None if body is None else json.dumps(body).encode()
    call = Call(address, data, {"Content-Type": "application/json"})
    try:
        with urlopen(call, timeout=ANSWER_WITHIN_S) as reply:
            found = json.load(reply)
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, HTTPException) as error:
        fix = "Check that the llama.cpp server runs"
        raise DataError(f"{address} does not answer", found=_short(error), fix=fix) from error
    return found


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
