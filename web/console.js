// The operator's page: rooms, members and users by the HTTP API, and a few metrics of the node that serves the page. It keeps the API
// key for the tab only. What clients chose, ids and states, becomes text and never markup.

import { VirtualList } from "./console-list.js";
import { Plots } from "./console-plots.js";

const keyName = "presence console key";
const roomsEvery = 30_000; // ms between two readings of the list of rooms, which asks Redis for each of them
const membersEvery = 2_000;
const pageOfRooms = 1000;
const mostRooms = 20_000;

const $ = (id) => document.getElementById(id);

let key = sessionStorage.getItem(keyName) ?? "";
let rooms = []; // by size
let chosen = null; // room id
let members = []; // of that room
let chosenConn = null;
let readingRooms = false;
let readingMembers = false;

class Refused extends Error {}

// ask gets the answer to a request, or throws Refused with a sentence for people.
async function ask(method, path) {
  let response;
  try {
    response = await fetch(path, { method, headers: { authorization: `Bearer ${key}` }, cache: "no-store" });
  } catch {
    throw new Refused("The server cannot be reached.");
  }
  const text = await response.text();
  const answer = text === "" ? {} : JSON.parse(text);
  if (response.ok) return answer;
  if (response.status === 401) leave();
  throw new Refused(answer.error ?? `The server answered ${response.status}.`);
}

const segment = (id) => encodeURIComponent(id).replace(/^\.+$/, (dots) => "%2E".repeat(dots.length));

function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

// attempt calls f, and shows the sentence of what was refused.
async function attempt(f) {
  try {
    await f();
    $("refusal").hidden = true;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    $("refusal").hidden = false;
    say("refusal", error.message);
  }
}

const age = (ms) => (ms < 1000 ? "now" : ms < 60_000 ? `${Math.floor(ms / 1000)} s ago` : `${Math.floor(ms / 60_000)} min ago`);

function span(kind, text) {
  const e = document.createElement("span");
  e.className = kind;
  e.textContent = text;
  return e;
}

const roomList = new VirtualList($("rooms"), {
  key: (r) => r.roomId,
  fill: (row, r) => row.replaceChildren(span("name", r.roomId), span("number", `${r.count} in, ${r.users} users`)),
  choose: (r) => choose(r.roomId),
});

const memberList = new VirtualList($("members"), {
  key: (m) => m.connId,
  fill: (row, m) => row.replaceChildren(span("name", m.userId), span("state", JSON.stringify(m.state)), span("number", age(Date.now() - m.lastSeenMs))),
  choose: (m) => {
    chosenConn = m.connId;
    showMember();
  },
});

async function readRooms() {
  if (readingRooms) return;
  readingRooms = true;
  try {
    const all = [];
    let cursor = "";
    do {
      const page = await ask("GET", `/v1/rooms?limit=${pageOfRooms}${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
      all.push(...page.rooms);
      cursor = page.cursor ?? "";
    } while (cursor && all.length < mostRooms);
    rooms = all.sort((a, b) => b.count - a.count || (a.roomId < b.roomId ? -1 : 1));
    showRooms();
  } finally {
    readingRooms = false;
  }
}

function showRooms() {
  const wanted = $("search").value;
  const shown = wanted === "" ? rooms : rooms.filter((r) => r.roomId.includes(wanted));
  roomList.show(shown, chosen);
  say("rooms-count", `${shown.length} of ${rooms.length} rooms, the largest first`);
}

function choose(room) {
  chosen = room;
  chosenConn = null;
  members = [];
  memberList.show(members, null);
  $("member").hidden = true;
  say("members-title", `Members of ${room}`);
  say("members-count", "Reading…");
  attempt(readMembers);
}

async function readMembers() {
  if (chosen === null || readingMembers) return;
  const room = chosen;
  readingMembers = true;
  try {
    const all = [];
    let cursor = "";
    do {
      const page = await ask("GET", `/v1/rooms/${segment(room)}?limit=1000${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
      all.push(...page.members);
      cursor = page.cursor ?? "";
    } while (cursor && room === chosen);
    if (room !== chosen) return;
    members = all;
    memberList.show(members, chosenConn);
    say("members-count", `${members.length} connections of ${new Set(members.map((m) => m.userId)).size} users`);
    showMember();
  } finally {
    readingMembers = false;
    if (room !== chosen) attempt(readMembers);
  }
}

function showMember() {
  const m = members.find((other) => other.connId === chosenConn);
  $("member").hidden = m === undefined;
  if (m === undefined) return;
  const facts = {
    User: m.userId,
    Connection: m.connId,
    Device: m.deviceId ?? "none",
    "Last heard of": new Date(m.lastSeenMs).toLocaleTimeString(),
    Epoch: m.epoch,
    State: JSON.stringify(m.state, null, 2),
  };
  $("facts").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => {
      const dt = document.createElement("dt");
      const dd = document.createElement("dd");
      dt.textContent = name;
      dd.textContent = String(value);
      return [dt, dd];
    }),
  );
}

function confirmKick(text) {
  const dialog = $("sure");
  say("sure-text", text);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

async function kick() {
  const room = chosen;
  const m = members.find((other) => other.connId === chosenConn);
  if (m === undefined || !(await confirmKick(`Remove the connection ${m.connId} of ${m.userId} from ${room}?`))) return;
  await attempt(async () => {
    await ask("DELETE", `/v1/rooms/${segment(room)}/conns/${segment(m.connId)}`);
    await readMembers();
  });
}

async function findUser(id) {
  const user = await ask("GET", `/v1/users/${segment(id)}`);
  const seen = user.lastSeenMs === undefined ? "" : `, last seen ${new Date(user.lastSeenMs).toLocaleString()}`;
  say("found", user.online ? `${id} is online with ${user.conns.length} connections` : `${id} is offline${seen}`);
  $("places").replaceChildren(
    ...user.conns.map((c) => {
      const li = document.createElement("li");
      li.textContent = `${c.roomId}: ${c.connId}, ${JSON.stringify(c.state)}`;
      return li;
    }),
  );
}

function enter() {
  $("door").hidden = true;
  $("desk").hidden = false;
  $("forget").hidden = false;
  attempt(readRooms);
}

function leave() {
  key = "";
  sessionStorage.removeItem(keyName);
  $("door").hidden = false;
  $("desk").hidden = true;
  $("forget").hidden = true;
}

const plots = new Plots($("plots"), (text) => say("node", text));

// every calls f as long as the console is open and its tab is shown.
function every(ms, f) {
  setInterval(() => {
    if (!document.hidden && !$("desk").hidden) attempt(f);
  }, ms);
}

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = $("key").value.trim();
  $("key").value = "";
  key = wanted;
  attempt(async () => {
    await ask("GET", "/v1/rooms?limit=1");
    sessionStorage.setItem(keyName, wanted);
    enter();
  });
});
$("forget").addEventListener("click", leave);
$("reload").addEventListener("click", () => attempt(readRooms));
$("search").addEventListener("input", showRooms);
$("kick").addEventListener("click", kick);
$("find").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(() => findUser($("user").value));
});

every(roomsEvery, readRooms);
every(membersEvery, readMembers);
every(5_000, () => plots.read());
plots.read().catch(() => {});
if (key !== "") enter();
