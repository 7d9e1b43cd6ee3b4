"""A foreign server for our client: aio-msgpack-rpc on a free port of 127.0.0.1.

Install:  rpc/tests/peers/install
Run:      target/peers/python/bin/python rpc/tests/peers/aio_server.py

Prints `listening on 127.0.0.1:PORT` and serves echo(x) -> x, add(i, j) -> i + j, sleep(ms) -> ms and
fail(text) -> an error with exactly that text, until it is killed.

What to expect of aio-msgpack-rpc 0.2.0: an error is the plain string `str(exception)`; an unknown method is the error
`'Methods' object has no attribute 'NAME'`; a notification is never answered; each request runs as a task of its own, so
answers may overtake each other. A message of the wrong shape is logged and ignored, so the call that sent it waits for ever.
"""

import asyncio

import msgpack
from aio_msgpack_rpc import Server


class Methods:
    def echo(self, value):
        return value

    def add(self, i, j):
        return i + j

    async def sleep(self, ms):
        await asyncio.sleep(ms / 1000)
        return ms

    def fail(self, text):
        raise Exception(text)


async def serve(reader, writer):
    # After the client's end of file, or bytes that are no MessagePack, the library only stops reading. So the socket is
    # closed here; calls that still run then get no answer.
    try:
        await Server(Methods(), unpacker_factory=lambda: msgpack.Unpacker(raw=False, strict_map_key=False))(reader, writer)
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    print(f"listening on {host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
