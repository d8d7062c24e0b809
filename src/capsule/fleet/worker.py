"""What runs inside of an executor's capsule: one call, or with *share* a fork for each.

It is handed to the interpreter as text, so nothing of Capsule need be seen there; it imports the
standard library alone. What it sends, the other side reads as hostile (`codec`).
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import random
import signal
import socket
import struct
import sys
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Sizes of the text and of the bytes that follow it.
HEAD = struct.Struct("=QQ")
SIZE = struct.Struct("=Q")
# Of a message or a traceback, so much.
_MOST_WORDS = 1 << 14
_MOST_KEY = 1 << 60


class Encoder:
    """A value as JSON, with its bytes beside it."""

    def __init__(self) -> None:
        self.blobs: list[Any] = []
        self._size = 0

    def encode(self, value: Any) -> Any:
        """Return what JSON can hold of it.

        Raises:
            TypeError: the value is of a type that does not go out.
        """
        kind = type(value)
        if value is None or kind in (bool, str, int, float):
            return value
        if kind is list:
            return [self.encode(one) for one in value]
        if kind is dict:
            return self._dict(value)
        if kind is tuple:
            return {"$": "tuple", "value": [self.encode(one) for one in value]}
        if kind in (set, frozenset):
            return {"$": kind.__name__, "value": [self.encode(_checked_key(one)) for one in value]}
        if kind is complex:
            return {"$": "complex", "value": [value.real, value.imag]}
        if kind in (bytes, bytearray):
            return {"$": "bytes", "at": self._put(value)}
        return self._of_numpy(value)

    def _dict(self, value: dict[Any, Any]) -> Any:
        if all(type(name) is str for name in value) and "$" not in value:
            return {name: self.encode(one) for name, one in value.items()}
        pairs = [[self.encode(_checked_key(name)), self.encode(one)] for name, one in value.items()]
        return {"$": "dict", "value": pairs}

    def _of_numpy(self, value: Any) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic):
            return self.encode(value.item())
        if numpy is None or type(value) is not numpy.ndarray or value.dtype.kind not in "biufcSUmM":
            raise TypeError(f"a result of type {type(value).__name__} does not go out of a capsule")
        whole = numpy.ascontiguousarray(value)
        at = self._put(whole.tobytes())
        return {"$": "ndarray", "dtype": whole.dtype.str, "shape": list(value.shape), "at": at}

    def _put(self, data: Any) -> list[int]:
        at = [self._size, len(data)]
        self.blobs.append(data)
        self._size += len(data)
        return at


def _checked_key(value: Any) -> Any:
    """Return what may be a key, or in a set: what nobody can make many of with one hash."""
    if value is None or type(value) in (bool, str, float, bytes):
        return value
    if type(value) is int and abs(value) < _MOST_KEY:
        return value
    raise TypeError(f"a key or member of type {type(value).__name__} does not go out of a capsule")


def frame(answer: dict[str, Any], encoder: Encoder | None = None) -> bytes:
    """An answer as it is sent."""
    text = json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass")
    blob = b"".join(encoder.blobs) if encoder is not None else b""
    return HEAD.pack(len(text), len(blob)) + text + blob


def read_exactly(channel: socket.socket, size: int) -> bytes:
    """So many bytes; ends where the other side has gone."""
    data = bytearray()
    while len(data) < size:
        more = channel.recv(min(size - len(data), 1 << 20))
        if not more:
            raise SystemExit
        data += more
    return bytes(data)


def read_request(channel: socket.socket) -> Any:
    """Read what the other side asks for: it is trusted."""
    (size,) = SIZE.unpack(read_exactly(channel, SIZE.size))
    return pickle.loads(read_exactly(channel, size))  # noqa: S301 - the caller sends it


def evaluate(source: str, names: dict[str, Any]) -> Any:
    """Execute source; its last statement, if that is an expression, is the value."""
    import ast

    tree = ast.parse(source, "<snippet>")
    space: dict[str, Any] = {"__name__": "__main__", **names}
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<snippet>", "exec"), space)  # noqa: S102 - what a capsule is for
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), "<snippet>", "eval"), space)  # noqa: S307


def perform(request: dict[str, Any]) -> Any:
    """Do what a request asks for."""
    if request["source"] is not None:
        return evaluate(request["source"], pickle.loads(request["call"]))  # noqa: S301
    function, args, kwargs = pickle.loads(request["call"])  # noqa: S301
    return function(*args, **kwargs)


def answer(request: dict[str, Any]) -> bytes:
    """Return the frame that answers a request."""
    try:
        value = perform(request)
        encoder = Encoder()
        if request["trusted"]:
            encoder.encode(_pickled(value))
            content: Any = {"$": "pickle", "at": [0, len(encoder.blobs[0])]}
        else:
            content = encoder.encode(value)
        made = frame({"id": request["id"], "value": content}, encoder)
        if len(made) > request["most"]:
            raise ValueError(
                f"the result takes {len(made)} bytes, more than the {request['most']} allowed"
            )
        return made
    except BaseException as error:  # noqa: BLE001 - it is told
        return frame({"id": request["id"], "error": told(error)})


def _pickled(value: Any) -> bytes:
    try:
        dumps = importlib.import_module("cloudpickle").dumps
    except ImportError:
        dumps = pickle.dumps
    return bytes(dumps(value))


def told(error: BaseException) -> dict[str, str]:
    """An exception in words."""
    try:
        words = str(error)
        trace = "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - whatever it does
        words, trace = "", ""
    return {
        "type": type(error).__name__,
        "message": words[:_MOST_WORDS],
        "traceback": trace[-_MOST_WORDS:],
    }


def serve(channel: socket.socket) -> None:
    """Answer one request."""
    made = answer(read_request(channel))
    sys.stdout.flush()
    sys.stderr.flush()
    channel.sendall(made)


def fork_for_each(channel: socket.socket) -> None:
    """Fork for each request, which comes over a socket of its own; kill those that are named."""
    children: dict[bytes, int] = {}

    def reap(_number: int, _frame: object) -> None:
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                for name, other in list(children.items()):
                    if other == pid:
                        del children[name]
        except ChildProcessError:
            pass

    signal.signal(signal.SIGCHLD, reap)
    while True:
        # The name of a call, with a socket: begin. Without: end.
        name, fds, _, _ = socket.recv_fds(channel, 16, 1)
        if not name:
            return
        if not fds:
            if name in children:
                os.kill(children[name], signal.SIGKILL)
            continue
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            begin_anew()
            channel.close()
            serve_in_fork(fds[0])
        children[name] = pid
        os.close(fds[0])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def begin_anew() -> None:
    """A fork is not to draw the same random numbers as the others, nor to hear of their ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    random.seed()
    # If it is not there yet, its import takes a seed of its own.
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def serve_in_fork(fd: int) -> None:
    """Answer one request and end, without what the parent has registered for its own end."""
    try:
        channel = socket.socket(fileno=fd)
        channel.sendall(b"+")  # from here on the call may have had effects
        serve(channel)
    except BaseException:  # noqa: BLE001 - whatever it does
        os._exit(1)
    os._exit(0)


def main(fd: int) -> None:
    """Import what is to be there, say so, and serve. The descriptor is that of the channel."""
    channel = socket.socket(fileno=fd)
    setup = read_request(channel)
    sys.path[:] = setup["path"]
    try:
        for name in setup["preload"]:
            __import__(name)
    except BaseException as error:  # noqa: BLE001 - it is told
        channel.sendall(frame({"id": "", "error": told(error)}))
        return
    channel.sendall(frame({"id": "", "value": None}))
    (fork_for_each if setup["share"] else serve)(channel)


if __name__ == "__main__":
    main(int(sys.argv[1]))
