// msgpack5rpc, a symmetric session for Node.js on streams, in both roles; see README.md beside this file.
//
// An answer that it does not expect ends the process.

const net = require('node:net');
const Session = require('msgpack5rpc');

const kept = [];

function handle(session, method, params, response) {
  switch (method) {
    case 'echo': return response.send(params[0]);
    case 'add':
      if (typeof params[0] !== 'number' || typeof params[1] !== 'number') return response.send('no numbers', true);
      return response.send(params[0] + params[1]);
    case 'fail': return response.send(params[0], true);
    case 'sleep': return setTimeout(() => response.send(params[0]), params[0]);
    case 'note': return response.send(kept.push(params[0]));
    case 'notes': return response.send(kept.splice(0));
    case 'nest':
      if (params[0] === 0) return response.send(0);
      return session.request('nest', [params[0] - 1], (error, depth) => {
        if (error) response.send(error, true);
        else response.send(depth + 1);
      });
    default: return response.send(`no such method: ${method}`, true);
  }
}

function open(socket) {
  const session = new Session([]);
  session.on('request', (method, params, response) => handle(session, method, params, response));
  session.on('notification', (method, params) => handle(session, method, params, { send() {} }));
  session.attach(socket, socket);
  return session;
}

function serve() {
  const server = net.createServer((socket) => {
    socket.on('error', () => {});
    open(socket);
  });
  server.listen(0, '127.0.0.1', () => console.log(`listening on 127.0.0.1:${server.address().port}`));
}

function outcome(session, method, params) {
  return new Promise((resolve) => {
    // A result of nil and no error look the same as an error of nil and no result, which is what the protocol says too.
    session.request(method, params, (error, result) => resolve(error === null ? ['ok', result] : ['error', error]));
  });
}

async function many(session, calls) {
  const ended = [];
  const one = async ([method, params], index) => ended.push([index, await outcome(session, method, params)]);
  await Promise.all(calls.map(one));
  return ['ok', ended];
}

async function call(host, port) {
  const socket = net.connect(port, host);
  const session = open(socket);
  for (;;) {
    const [, step] = await outcome(session, 'next', []);
    if (step === null) break;
    const [kind, method, params] = step;
    let result = ['unable', null];
    if (kind === 'call') result = await outcome(session, method, params);
    else if (kind === 'many') result = await many(session, params);
    else if (kind === 'notify') {
      session.notify(method, params);
      result = ['ok', null];
    } else if (kind === 'leave') {
      session.request(method, params, () => {});
      setTimeout(() => process.exit(0), 100);
      return;
    }
    await outcome(session, 'report', [result]);
  }
  process.exit(0);
}

if (process.argv[2] === 'serve') serve();
else call(process.argv[3], Number(process.argv[4]));
