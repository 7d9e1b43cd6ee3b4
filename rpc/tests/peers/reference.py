"""msgpack-rpc-python, the implementation of the protocol's authors, in both roles; see README.md beside this file.

It knows no bin by itself, raises on any notification that its client gets, and looks at its time-outs once a second.
"""

import datetime
import sys

from tornado.netutil import bind_sockets

import msgpackrpc
from msgpackrpc.error import RPCError
from msgpackrpc.server import AsyncResult
from msgpackrpc.transport import tcp


class Methods:
    def __init__(self):
        self.kept = []
        self.loop = None

    def echo(self, value):
        return value

    def add(self, i, j):
        return i + j

    def fail(self, value):
        raise Exception(value)

    def sleep(self, ms):
        result = AsyncResult()
        self.loop._ioloop.add_timeout(datetime.timedelta(milliseconds=ms), lambda: result.set_result(ms))
        return result

    def note(self, value):
        self.kept.append(value)

    def notes(self):
        kept, self.kept = self.kept, []
        return kept


def serve():
    methods = Methods()
    server = msgpackrpc.Server(methods, unpack_encoding="utf-8")
    methods.loop = server._loop
    # `listen` of the library takes every address, and does not tell the port.
    transport = tcp.ServerTransport(None, server._encodings)
    transport._server = server
    listener = tcp.MessagePackServer(transport, io_loop=server._loop._ioloop, encodings=server._encodings)
    sockets = bind_sockets(0, "127.0.0.1")
    listener.add_sockets(sockets)
    print("listening on {}:{}".format(*sockets[0].getsockname()), flush=True)
    server.start()


def outcome(future):
    try:
        return ["ok", future.get()]
    except RPCError as error:
        return ["error", error.args[0]]


def many(client, calls):
    order = []
    futures = []
    for index, (method, params) in enumerate(calls):
        future = client.call_async(method, *params)
        # A future is not yet done when its callback runs.
        future.attach_callback(lambda _, index=index: order.append(index))
        futures.append(future)
    for future in futures:
        future.join()
    return ["ok", [[index, outcome(futures[index])] for index in order]]


def call(host, port):
    client = msgpackrpc.Client(msgpackrpc.Address(host, port), timeout=30, unpack_encoding="utf-8")
    while True:
        step = client.call("next")
        if step is None:
            return
        kind, method, params = step
        if kind == "call":
            result = outcome(client.call_async(method, *params))
        elif kind == "notify":
            client.notify(method, *params)
            result = ["ok", None]
        elif kind == "many":
            result = many(client, params)
        elif kind == "leave":
            client.call_async(method, *params)
            client._loop._ioloop.call_later(0.1, client._loop.stop)
            client._loop.start()
            client.close()
            return
        client.call("report", result)


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else call(sys.argv[2], int(sys.argv[3]))
