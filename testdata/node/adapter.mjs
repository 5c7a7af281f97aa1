// A Socket.IO server with the Redis adapter, one client of it in a room, and an emitter.
//
//   node adapter.mjs <redis|ioredis|cluster> <Redis URL> <room>
//
// Each line of standard input is a command in JSON, each line of standard output what
// the client received, as [event, …args].
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { createAdapter } from '@socket.io/redis-adapter';
import { Emitter } from '@socket.io/redis-emitter';
import { Cluster, Redis } from 'ioredis';
import { createClient } from 'redis';
import { Server } from 'socket.io';
import { io as connect } from 'socket.io-client';

const [library, url, room] = process.argv.slice(2);

const open = {
  redis: () => createClient({ url }).connect(),
  ioredis: async () => new Redis(url),
  cluster: async () => new Cluster([url]),
}[library];

const [pub, sub] = await Promise.all([open(), open()]);
const http = createServer();
const io = new Server(http, { adapter: createAdapter(pub, sub) });
const emitter = new Emitter(pub);
io.on('connection', (socket) => socket.join(room));

await new Promise((resolve) => http.listen(0, '127.0.0.1', resolve));
const client = connect(`http://127.0.0.1:${http.address().port}`, { transports: ['websocket'] });
await new Promise((resolve) => client.once('connect', resolve));
// The adapter does not wait for its own subscription, which goes out before this one.
await sub.subscribe('after the adapter', () => {});

const tell = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
client.onAny((...event) => tell(event));
tell(['ready']);

const special = {
  binary: Buffer.from('binary'),
  date: new Date('2026-11-25T02:12:08.231Z'),
  undefined,
  nan: NaN,
};
for await (const line of createInterface({ input: process.stdin })) {
  const { by, rooms = [], except = [], event, args = [], add } = JSON.parse(line);
  let target = by === 'emitter' ? emitter : io;
  for (const name of rooms) target = target.to(name);
  for (const name of except) target = target.except(name);
  target.emit(event, ...args, ...(add ? [special[add]] : []));
}
process.exit();
