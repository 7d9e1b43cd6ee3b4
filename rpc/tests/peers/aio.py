"""aio-msgpack-rpc, a library on asyncio, in both roles; see README.md beside this file.

An error that Python counts as false ("", 0, []) reads as success; calls in flight are never answered when the connection ends.
"""

import asyncio
import sys

import msgpack
from aio_msgpack_rpc import Client, Server
from aio_msgpack_rpc.error import RPCResponseError


def unpacker():
    return msgpack.Unpacker(raw=False, strict_map_key=False)


class Methods:
    def __init__(self):
        self.kept = []

    def echo(self, value):
        return value

    def add(self, i, j):
        return i + j

    def fail(self, value):
        raise Exception(value)

    async def sleep(self, ms):
        await asyncio.sleep(ms / 1000)
        return ms

    def note(self, value):
        self.kept.append(value)

    def notes(self):
        kept, self.kept = self.kept, []
        return kept


async def serve():
    methods = Methods()

    async def on_connection(reader, writer):
        # The library only stops reading at the end of a connection.
        try:
            await Server(methods, unpacker_factory=unpacker)(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    print("listening on {}:{}".format(*server.sockets[0].getsockname()), flush=True)
    await server.serve_forever()


async def outcome(client, method, params):
    try:
        return ["ok", await client.call(method, *params)]
    except RPCResponseError as error:
        return ["error", error.args[0]]


async def many(client, calls):
    ended = []

    async def one(index, method, params):
        ended.append([index, await outcome(client, method, params)])

    await asyncio.gather(*(one(index, *call) for index, call in enumerate(calls)))
    return ["ok", ended]


async def call(host, port):
    client = Client(*await asyncio.open_connection(host, port), unpacker=unpacker())
    while (step := await client.call("next")) is not None:
        kind, method, params = step
        if kind == "call":
            result = await outcome(client, method, params)
        elif kind == "notify":
            await client.notify(method, *params)
            result = ["ok", None]
        elif kind == "many":
            result = await many(client, params)
        elif kind == "leave":
            left = asyncio.ensure_future(client.call(method, *params))
            await asyncio.sleep(0)
            client.close()
            left.cancel()
            return
        await client.call("report", result)


if __name__ == "__main__":
    asyncio.run(serve() if sys.argv[1] == "serve" else call(sys.argv[2], int(sys.argv[3])))
