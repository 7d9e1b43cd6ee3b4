// The npm package `neovim`, the client of Neovim for Node.js, in both roles; see README.md beside this file.
//
// As a client it is what `attach` gives its users, who expect the server to be Neovim: it asks for `nvim_get_api_info` first, and
// of an error it shows the second element. As a server it is the same library's transport, which hands requests to a listener.

const net = require('node:net');
const { attach } = require('neovim');
const { Transport } = require('neovim/lib/utils/transport');

const logger = { level: 'error', info() {}, debug() {}, warn() {}, error() {} };
const kept = [];

function handle(transport, method, params, response) {
  const call = (name, args) =>
    new Promise((resolve, reject) => {
      transport.request(name, args, (error, result) => (error ? reject(error) : resolve(result)));
    });
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
      return call('nest', [params[0] - 1]).then((depth) => response.send(depth + 1), (error) => response.send(error, true));
    default: return response.send(`no such method: ${method}`, true);
  }
}

function serve() {
  const server = net.createServer((socket) => {
    socket.on('error', () => {});
    const transport = new Transport();
    transport.on('request', (method, params, response) => handle(transport, method, params, response));
    transport.on('notification', (method, params) => handle(transport, method, params, { send() {} }));
    transport.attach(socket, socket, null);
  });
  server.listen(0, '127.0.0.1', () => console.log(`listening on 127.0.0.1:${server.address().port}`));
}

async function outcome(client, method, params) {
  try {
    return ['ok', await client.request(method, params)];
  } catch (error) {
    return ['error', error.message];
  }
}

async function many(client, calls) {
  const ended = [];
  const one = async ([method, params], index) => ended.push([index, await outcome(client, method, params)]);
  await Promise.all(calls.map(one));
  return ['ok', ended];
}

async function call(host, port) {
  const client = attach({ socket: { host, port }, options: { logger } });
  client.on('request', (method, params, response) => handle(client.transport, method, params, response));
  await client.channelId;
  for (;;) {
    const step = await client.request('next', []);
    if (step === null) break;
    const [kind, method, params] = step;
    let result = ['unable', null];
    if (kind === 'call') result = await outcome(client, method, params);
    else if (kind === 'many') result = await many(client, params);
    else if (kind === 'notify') {
      client.notify(method, params);
      result = ['ok', null];
    } else if (kind === 'leave') {
      client.request(method, params);
      setTimeout(() => process.exit(0), 100);
      return;
    }
    await client.request('report', [result]);
  }
  process.exit(0);
}

if (process.argv[2] === 'serve') serve();
else call(process.argv[3], Number(process.argv[4]));
