"""pynvim, the Python client of Neovim, in both roles; see README.md beside this file.

Its sessions are symmetric: handlers run on greenlets and may call the other side. It shows errors in Neovim's form,
`[code, text]`, and keeps only the text, hence the wrapper here. It answers what it cannot understand with id 0.
"""

import os
import socket
import sys

import greenlet
from pynvim.msgpack_rpc import ErrorResponse
from pynvim.msgpack_rpc.async_session import AsyncSession
from pynvim.msgpack_rpc.event_loop import EventLoop
from pynvim.msgpack_rpc.msgpack_stream import MsgpackStream
from pynvim.msgpack_rpc.session import Session


class Failed(Exception):
    pass


class Accepted(EventLoop):
    """pynvim only connects; this is its event loop on a connection that was accepted."""

    def _connect_tcp(self, connection, _):
        accepted = self._loop.connect_accepted_socket(self._protocol_factory, connection)
        self._transport, self._protocol = self._loop.run_until_complete(accepted)


def session(loop):
    opened = Session(AsyncSession(MsgpackStream(loop)))
    opened.error_wrapper = Failed
    return opened


class Methods:
    def __init__(self, peer):
        self.peer = peer
        self.kept = []

    def on_request(self, name, params):
        method = getattr(self, name, None)
        if method is None:
            raise ErrorResponse(f"no such method: {name}")
        try:
            return method(*params)
        except TypeError as error:
            # The library would answer with a traceback, and the places of files in it.
            raise ErrorResponse(str(error)) from error

    def on_notification(self, name, params):
        try:
            getattr(self, name, lambda *_: None)(*params)
        except ErrorResponse:
            pass  # It is no `Exception`, and would end the session.

    def run(self, setup=None):
        self.peer.run(self.on_request, self.on_notification, setup)

    def echo(self, value):
        return value

    def add(self, i, j):
        return i + j

    def fail(self, value):
        raise ErrorResponse(value)

    def sleep(self, ms):
        current = greenlet.getcurrent()
        self.peer.loop._loop.call_later(ms / 1000, current.switch)
        current.parent.switch()
        return ms

    def note(self, value):
        self.kept.append(value)

    def notes(self):
        kept, self.kept = self.kept, []
        return kept

    def nest(self, depth):
        return 1 + self.peer.request("nest", depth - 1) if depth else 0


def serve():
    """A process for each connection, since a session has an event loop of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            try:
                Methods(session(Accepted("tcp", connection, None))).run()
            except (EOFError, OSError):
                pass  # That is how the other side's end arrives.
            os._exit(0)
        connection.close()


def outcome(peer, method, params):
    try:
        return ["ok", peer.request(method, *params)]
    except Failed as error:
        return ["error", error.args[0]]


def many(peer, calls):
    ended = []
    current = greenlet.getcurrent()

    def answered(index):
        def keep(error, result):
            ended.append([index, ["ok", result] if error is None else ["error", error]])
            if len(ended) == len(calls):
                current.switch()

        return keep

    for index, (method, params) in enumerate(calls):
        peer._async_session.request(method, params, answered(index))
    current.parent.switch()
    return ["ok", ended]


def call(host, port):
    peer = session(EventLoop("tcp", host, port))

    def steps():
        while (step := peer.request("next")) is not None:
            kind, method, params = step
            if kind == "call":
                result = outcome(peer, method, params)
            elif kind == "notify":
                peer.request(method, *params, async_=True)
                result = ["ok", None]
            elif kind == "many":
                result = many(peer, params)
            elif kind == "leave":
                peer._async_session.request(method, params, lambda *_: None)
                peer.loop._loop.call_later(0.1, os._exit, 0)
                return
            peer.request("report", result)
        peer.stop()

    Methods(peer).run(steps)


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else call(sys.argv[2], int(sys.argv[3]))
