// The demo page: shows a room as presence.js sees it, and does to the connection what happens in real life.
import { afterAll, closeLid, openLid } from "/sleep.js"; // first, so that the others can be put to sleep
import { io } from "/socket.io/socket.io.esm.min.js";
import { autoAway, isAway, joinRoom, watchUsers } from "/presence.js";

const SLEEP_MS = 40_000;
const STOPPED_TYPING_MS = 2_000;
const SHOWN_PEOPLE = 200;
const SHOWN_EVENTS = 100;
const SHOWN_LETTERS = 80; // of what a state says; the page's own field takes no more
const NAMES = ["Amber", "Basil", "Clover", "Fern", "Hazel", "Iris", "Juniper", "Laurel", "Maple", "Olive", "Rowan", "Sage", "Willow"];
const STATUS = {
  joining: "joining",
  joined: "live",
  offline: "offline, trying to come back",
  expired: "the token has run out",
  refused: "refused",
  asleep: "asleep",
  kicked: "removed by an operator",
  replaced: "continued elsewhere",
  left: "left",
};

/** @param {string} id */
const $ = (id) => /** @type {any} */ (document.getElementById(id));

/** An element with a class and a text, which is never taken for HTML. */
function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** What a member has in its state, as text: others may have put anything there. Nothing is said for "", null and what is missing. */
function words(value) {
  const text = typeof value === "string" ? value : value == null ? "" : JSON.stringify(value);
  const letters = [...text.slice(0, 2 * SHOWN_LETTERS)]; // never half a letter
  return letters.length > SHOWN_LETTERS ? `${letters.slice(0, SHOWN_LETTERS).join("")}…` : letters.join("");
}

/** Mood and note of a state, as text. */
function said({ mood, note }) {
  const noted = words(note);
  return { mood: words(mood) || "here", note: noted && `: “${noted}”` };
}

const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;

let socket;
let room;
let friends;
let stopAway;
const cards = new Map(); // of the people, by user
const rows = new Map(); // of the friends, by user

// The door

const wish = new URLSearchParams(location.search);
$("host").textContent = `at ${location.host}`;
$("name").value = wish.get("name") ?? NAMES[Math.floor(Math.random() * NAMES.length)];
$("room-name").value = wish.get("room") ?? "lobby";
$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("name").value.trim();
  const roomName = $("room-name").value.trim();
  if (name && roomName) enter(roomName, name);
});

/** Keeps in the address what a reload, or a second tab, begins with. */
function remember(fields) {
  const all = [...Object.entries(fields), ...[...rows.keys()].map((friend) => ["friend", friend])];
  history.replaceState(null, "", all.length > 0 ? `?${new URLSearchParams(all)}` : location.pathname);
}

function enter(roomId, userId) {
  socket = io({ transports: ["websocket"] });
  socket.on("connect_error", ({ message }) => showRefusal(`No connection: ${message}`));
  room = joinRoom(socket, { roomId, userId, state: { mood: mood() } });
  stopAway = autoAway(room, { idleMs: 60_000 });
  room.on("change", show);
  room.on("status", showStatus);
  room.on("error", ({ error, retrying }) => showRefusal(retrying ? `${error}. Trying again.` : error));
  friends = watchUsers(socket, rows.keys());
  friends.on("change", showFriend);
  friends.on("status", showFriendsStatus);
  friends.on("error", ({ error }) => showFriendsRefusal(error));
  remember({ room: roomId, name: userId });
  $("room-title").textContent = roomId;
  document.title = `${roomId} – Presence`;
  $("door").hidden = true;
  $("room").hidden = false;
  $("room-title").focus();
  showStatus(room.status);
  showCounts();
}

async function leave() {
  stopAway();
  await Promise.all([room.leave(), friends.stop()]);
  socket.disconnect();
  for (const userId of rows.keys()) showFriend({ userId });
  remember({});
  document.title = "Presence";
  $("feed").replaceChildren();
  $("note").value = "";
  $("refusal").hidden = true;
  $("room").hidden = true;
  $("door").hidden = false;
  $("name").select();
}

// The room

function show({ type, member, event }) {
  if (type === "snapshot") showEverybody();
  else showPerson(member.userId);
  showCounts();
  if (event) {
    addToFeed(event.type, `${event.userId} ${told(event)}`, event.rev, event.connId);
    if (event.type === "join" && event.userConns === 1) announce(`${event.userId} came`);
    if (event.type === "leave" && event.userConns === 0) announce(`${event.userId} left`);
  } else if (room.members.size > 0) {
    addToFeed("snapshot", `${count(room.members.size, "connection", "connections")} in the room`, room.rev);
  }
}

/** What an event says, in words. */
function told({ type, state, userConns, reason }) {
  if (type === "join") return userConns === 1 ? "came" : `has ${count(userConns, "tab", "tabs")} now`;
  if (type === "leave") return `${userConns === 0 ? "left" : `has ${count(userConns, "tab", "tabs")} left`}${reason ? `, ${reason}` : ""}`;
  if (state.typing) return "is typing";
  const { mood, note } = said(state);
  return `is ${mood}${note}`;
}

function showEverybody() {
  for (const userId of cards.keys()) if (!room.users.has(userId)) showPerson(userId);
  for (const userId of room.users.keys()) showPerson(userId);
}

/** Makes, changes or removes a user's card. */
function showPerson(userId) {
  const conns = room.users.get(userId);
  let card = cards.get(userId);
  if (!conns) {
    cards.delete(userId);
    if (card) removeCard(card);
    return;
  }
  if (!card) {
    if (cards.size >= SHOWN_PEOPLE) return;
    cards.set(userId, (card = newCard(userId)));
    $("people").append(card);
  }
  fillCard(card, userId, [...conns.values()]);
}

function newCard(userId) {
  const card = element("li", "person");
  const avatar = element("span", "avatar", initials(userId));
  avatar.ariaHidden = "true";
  avatar.style.setProperty("--hue", hue(userId));
  const about = element("div", "about");
  const who = element("p", "who");
  who.append(element("span", "name", userId), element("span", "tag"));
  about.append(who, element("p", "says"));
  card.append(avatar, about);
  return card;
}

function fillCard(card, userId, members) {
  const latest = members.reduce((a, b) => (b.rev > a.rev || (b.rev === a.rev && b.epoch > a.epoch) ? b : a));
  const { mood, note } = said(latest.state);
  const typing = members.some(({ state }) => state.typing);
  const tags = [userId === room.userId ? "you" : "", members.length > 1 ? `${members.length} tabs` : "", isAway(room.users.get(userId)) ? "idle" : ""];
  card.dataset.mood = mood;
  card.querySelector(".tag").textContent = tags.filter(Boolean).join(" · ");
  const says = card.querySelector(".says");
  says.textContent = typing ? "typing" : `${mood}${note}`;
  says.classList.toggle("typing", typing);
}

function removeCard(card) {
  card.classList.add("gone");
  if (getComputedStyle(card).animationName === "none") card.remove();
  else card.addEventListener("animationend", () => card.remove());
}

function showCounts() {
  const people = room.users.size;
  $("counts").textContent = `${count(people, "person", "people")} · ${count(room.members.size, "connection", "connections")} · rev ${room.rev}`;
  $("more").textContent = `and ${people - cards.size} more`;
  $("more").hidden = people <= cards.size;
}

function showStatus(status) {
  $("status").textContent = STATUS[status];
  $("status").dataset.is = status;
  $("people").classList.toggle("stale", status !== "joined");
  if (status === "joined") $("refusal").hidden = true;
  if (status === "kicked") showRefusal("You were removed from the room. Leave, and join again.");
}

function showRefusal(text) {
  $("refusal").textContent = text;
  $("refusal").hidden = false;
}

function addToFeed(type, text, rev, connId = "") {
  const row = element("li", type);
  row.append(element("b", "", type), element("span", "what", text), element("small", "", `rev ${rev}${connId ? ` · ${connId.slice(0, 6)}` : ""}`));
  $("feed").prepend(row);
  if ($("feed").children.length > SHOWN_EVENTS) $("feed").lastChild.remove();
}

/** For screen readers: who comes and goes, not every change. */
function announce(text) {
  $("news").textContent = text;
}

function initials(name) {
  const words = name.match(/[\p{L}\p{N}]+/gu) ?? [name];
  const letters = words.length > 1 ? [[...words[0]][0], [...words.at(-1)][0]] : [...words[0]].slice(0, 2);
  return letters.join("").toUpperCase();
}

function hue(name) {
  let sum = 0;
  for (const letter of name) sum = (sum * 31 + letter.codePointAt(0)) % 360;
  return sum;
}

// You

function mood() {
  return document.querySelector("input[name=mood]:checked").value;
}

let stoppedTyping;

for (const choice of document.querySelectorAll("input[name=mood]")) {
  choice.addEventListener("change", () => room.patch({ mood: mood() }));
}

$("note").addEventListener("input", () => {
  if (!room.state.typing) room.patch({ typing: true });
  clearTimeout(stoppedTyping);
  stoppedTyping = setTimeout(noted, STOPPED_TYPING_MS);
});
$("note").addEventListener("change", noted);

function noted() {
  clearTimeout(stoppedTyping);
  room.patch({ typing: false, note: $("note").value.trim() });
}

$("tab").addEventListener("click", () => window.open(location.href, "_blank", "noopener"));
$("lose").addEventListener("click", () => socket.io.engine.close());
$("leave").addEventListener("click", leave);

// Friends

$("befriend").addEventListener("submit", (event) => {
  event.preventDefault();
  const userId = $("friend").value.trim();
  $("friend").value = "";
  if (!userId || rows.has(userId)) return;
  addFriend(userId);
  friends.add(userId);
  remember({ room: room.roomId, name: room.userId });
});

function addFriend(userId) {
  const row = element("li", "friend");
  const remove = element("button", "remove", "×");
  remove.type = "button";
  remove.ariaLabel = `Remove ${userId}`;
  remove.addEventListener("click", () => removeFriend(userId));
  row.append(element("span", "name", userId), element("span", "state"), remove);
  rows.set(userId, row);
  $("friends").append(row);
  showFriend({ userId });
}

function removeFriend(userId) {
  rows.get(userId).remove();
  rows.delete(userId);
  friends.remove(userId);
  remember({ room: room.roomId, name: room.userId });
  $("friend").focus();
}

function showFriend({ userId, online }) {
  const row = rows.get(userId);
  const known = row.dataset.is !== "unknown" && online !== undefined;
  row.dataset.is = online === undefined ? "unknown" : online ? "online" : "offline";
  row.querySelector(".state").textContent = online === undefined ? "not known yet" : row.dataset.is;
  if (known) announce(`${userId} is ${row.dataset.is}`);
}

function showFriendsStatus(status) {
  $("friends").classList.toggle("stale", status !== "joined");
  if (status === "joined") showFriendsRefusal("");
}

function showFriendsRefusal(text) {
  $("friends-refusal").textContent = text;
  $("friends-refusal").hidden = text === "";
}

// Sleep

let wakesAt = 0; // 0 = awake

$("sleep").addEventListener("click", () => {
  if (wakesAt) return wakeUp();
  closeLid();
  wakesAt = Date.now() + SLEEP_MS;
  showStatus("asleep");
  showFriendsStatus("asleep");
  $("sleep").textContent = "Wake up";
  for (const control of others()) control.disabled = true;
  countDown(wakesAt);
});

/** Every control that does not work in sleep. */
const others = () => document.querySelectorAll("#room input, #room button:not(#sleep)");

function countDown(end) {
  if (end !== wakesAt) return; // woken up before
  const left = Math.ceil((end - Date.now()) / 1000);
  if (left <= 0) return wakeUp();
  $("asleep").textContent = `This tab is asleep for ${left} s: no timer, no network.`;
  $("asleep").hidden = false;
  afterAll(() => countDown(end), 1000);
}

function wakeUp() {
  wakesAt = 0;
  $("asleep").hidden = true;
  $("sleep").textContent = "Sleep 40 s";
  for (const control of others()) control.disabled = false;
  showStatus(room.status);
  showFriendsStatus(friends.status);
  openLid();
}

for (const userId of new Set(wish.getAll("friend"))) addFriend(userId);
if (wish.get("name") && wish.get("room")) $("enter").requestSubmit();
else $("name").select();
