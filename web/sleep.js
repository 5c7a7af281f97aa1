// The lid of a laptop, for this tab alone: while it is closed no timer fires, and nothing comes or goes by WebSocket.
// Import it before everything that is to sleep.

const { setTimeout: start, clearTimeout: stop, WebSocket: Plain } = globalThis;
const waiting = new Map();
let asleep = false;

function whenAwake(key, run) {
  if (asleep) waiting.set(key, run);
  else run();
}

globalThis.setTimeout = (run, ms, ...args) => {
  const id = start(() => whenAwake(id, () => run(...args)), ms);
  return id;
};

globalThis.clearTimeout = (id) => {
  stop(id);
  waiting.delete(id);
};

globalThis.WebSocket = class WebSocket extends Plain {
  send(data) {
    if (!asleep) super.send(data);
  }
};

for (const name of ["onopen", "onmessage", "onerror", "onclose"]) {
  const { get, set } = Object.getOwnPropertyDescriptor(Plain.prototype, name);
  Object.defineProperty(globalThis.WebSocket.prototype, name, {
    get,
    set(listener) {
      set.call(this, listener && ((event) => whenAwake(event, () => listener.call(this, event))));
    },
  });
}

/** Runs f after so many milliseconds, asleep or not. */
export const afterAll = (f, ms) => start(f, ms);

export function closeLid() {
  asleep = true;
}

/** Whatever should have happened happens now, in its order. */
export function openLid() {
  asleep = false;
  for (const [key, run] of waiting) {
    waiting.delete(key);
    run();
  }
}
