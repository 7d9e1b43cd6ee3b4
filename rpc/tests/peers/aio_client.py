"""A foreign client for our server: calls a running `rpc_server` with aio-msgpack-rpc and checks every answer.

Install:  rpc/tests/peers/install
Run:      target/peers/python/bin/python rpc/tests/peers/aio_client.py 127.0.0.1 7000

Prints `ok N checks` and exits with 0, or one line for each wrong answer and exits with 1. It needs the methods
echo(x) -> x, add(i, j) -> i + j and fail(text) -> an error that contains the text.

Two habits of aio-msgpack-rpc 0.2.0 shape this script. When the connection dies, or when its unpacker throws, calls in
flight are never answered: hence a timeout on each, and an end at the first that passes. An error that Python counts as
false ("", 0, []) is reported as success with the result nil: hence no empty error text here.
"""

import asyncio
import math
import struct
import sys

import msgpack
from aio_msgpack_rpc import Client
from aio_msgpack_rpc.error import RPCResponseError

CALL_SECONDS = 20.0
PIPELINED_CALLS = 1000

# Each length or number on which MessagePack changes its encoding, and its neighbours.
SIZES = [0, 1, 31, 32, 255, 256, 65535, 65536, 1 << 20]
COUNTS = [0, 1, 15, 16, 65535, 65536]
INTEGERS = sorted(
    {
        edge + step
        for edge in [0, -32, 2**7, -(2**7), 2**8, 2**15, -(2**15), 2**16, 2**31, -(2**31), 2**32, 2**53, 2**63]
        for step in [-1, 0, 1]
    }
    | {-(2**63), -(2**63) + 1, 2**64 - 2, 2**64 - 1}
)
FLOATS = [0.0, -0.0, 1.0, -1.5, 0.1, 5e-324, sys.float_info.max, math.inf, -math.inf, math.nan]


def nested(depth, wrap):
    """A value inside `depth` containers."""
    value = "core"
    for _ in range(depth):
        value = wrap(value)
    return value


VALUES = (
    [None, False, True]
    + INTEGERS
    + FLOATS
    + ["x" * size for size in SIZES]
    + ["", "ধাগা", "धागा", "\0", "\U0001f9f5" * 64]
    + [bytes(size) for size in SIZES]
    + [bytes(range(256)), b"\xff\xfe\xc1"]
    + [list(range(count)) for count in COUNTS]
    + [{f"key {i}": i for i in range(count)} for count in COUNTS]
    + [nested(16, lambda value: [value]), nested(16, lambda value: {"inner": value})]
    + [[1, [2, [3, {"a": [None, True, b"\0", {"b": -1.5}]}]], "", [], {}], {1: "one", -1: [1], "": {}}]
)


def same(left, right):
    """Equality that keeps 1, 1.0 and True apart, and also 0.0 and -0.0, and finds NaN equal to itself."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


def shown(value):
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({type(value).__name__}, {len(text)} characters)"


class Checks:
    def __init__(self):
        self.done = 0
        self.wrong = 0

    def expect(self, what, holds, got):
        self.done += 1
        if not holds:
            self.wrong += 1
            print(f"wrong: {what} gave {shown(got)}", file=sys.stderr)


async def outcome(client, method, *params):
    """The result of a call, or the error that answered it. No answer at all ends the script."""
    try:
        return await client.call(method, *params, timeout=CALL_SECONDS)
    except RPCResponseError as error:
        return error


async def check_server(client, checks):
    for i, j in [(1, 2), (-5, 3), (0, 0), (2**40, 2**40), (-(2**63), 2**63 - 1)]:
        got = await outcome(client, "add", i, j)
        checks.expect(f"add({i}, {j})", same(got, i + j), got)

    for value in VALUES:
        got = await outcome(client, "echo", value)
        checks.expect(f"echo({shown(value)})", same(got, value), got)

    for text in ["no such file", "x" * 1000, "ধাগা"]:
        got = await outcome(client, "fail", text)
        checks.expect(f"fail({shown(text)})", isinstance(got, RPCResponseError) and text in str(got), got)

    got = await outcome(client, "no_such_method", 1)
    checks.expect("an unknown method", isinstance(got, RPCResponseError), got)
    got = await outcome(client, "add", 1)
    checks.expect("add with one parameter", isinstance(got, RPCResponseError), got)
    got = await outcome(client, "add", "a", [])
    checks.expect("add of what is no number", isinstance(got, RPCResponseError), got)

    # A notification has no answer, not even when it fails or nobody knows it; the calls after it are answered as ever.
    for method, params in [("echo", ["quiet"]), ("fail", ["quiet"]), ("no_such_method", [])]:
        await client.notify(method, *params)
        got = await outcome(client, "add", 20, 22)
        checks.expect(f"add after the notification {method}", same(got, 42), got)

    answers = await asyncio.gather(*(outcome(client, "add", i, 1) for i in range(PIPELINED_CALLS)))
    for i, got in enumerate(answers):
        checks.expect(f"pipelined add({i}, 1)", same(got, i + 1), got)


async def main(host, port):
    reader, writer = await asyncio.open_connection(host, port)
    client = Client(reader, writer, unpacker=msgpack.Unpacker(raw=False, strict_map_key=False))
    checks = Checks()
    try:
        await check_server(client, checks)
    except asyncio.TimeoutError:
        print(f"no answer within {CALL_SECONDS} s, after {checks.done} checks", file=sys.stderr)
        return 1
    finally:
        client.close()
    if checks.wrong:
        print(f"{checks.wrong} of {checks.done} checks went wrong", file=sys.stderr)
        return 1
    print(f"ok {checks.done} checks")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: aio_client.py HOST PORT")
    sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]))))
