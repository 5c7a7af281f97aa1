// Clients with the real socket.io-client, told what to do.
//
//   node client.mjs
//
// Each line of standard input is a command in JSON: { client, do, … }; each line of standard output tells what became of
// a client: [client, what, …].
import http from 'node:http';
import https from 'node:https';
import { createInterface } from 'node:readline';
import { io } from 'socket.io-client';

const sockets = {};
const tell = (...what) => process.stdout.write(`${JSON.stringify(what)}\n`);

const commands = {
  /** Opens a client, at an address of this machine if one is given, which says `join` to the server whenever it is connected. */
  open({ client, url, options, join, localAddress }) {
    const { Agent } = url.startsWith('https:') ? https : http;
    const agent = localAddress && new Agent({ localAddress, keepAlive: true, ca: options.ca });
    const socket = io(url, { forceNew: true, reconnectionDelay: 20, reconnectionDelayMax: 100, agent, ...options });
    sockets[client] = socket;
    // Later it would be too late: an upgrade may be over before the client is connected.
    socket.io.on('open', () => socket.io.engine.on('upgrade', ({ name }) => tell(client, 'upgrade', name)));
    socket.on('connect', () => {
      tell(client, 'connect', socket.id);
      if (join) socket.emit('presence:join', join, (ack) => tell(client, 'joined', ack));
    });
    socket.on('connect_error', ({ message }) => tell(client, 'connect_error', message));
    socket.on('disconnect', (reason) => tell(client, 'disconnect', reason));
    socket.on('presence:event', (event) => tell(client, 'event', event));
    socket.on('chat', (message) => tell(client, 'chat', message));
  },
  emit({ client, event, payload }) {
    sockets[client].emit(event, payload, (ack) => tell(client, 'ack', ack));
  },
  /** Loses the connection as a broken network does. */
  cut: ({ client }) => sockets[client].io.engine.transport.ws.terminate(),
  disconnect: ({ client }) => sockets[client].disconnect(),
  connect: ({ client }) => sockets[client].connect(),
  die: () => process.kill(process.pid, 'SIGKILL'),
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  commands[command.do](command);
}
process.exit();
