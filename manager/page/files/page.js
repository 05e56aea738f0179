// Draws what /network.json tells, again and again. Texts of others go into text nodes alone, never into markup.
"use strict";

const LOOK_MS = 2000;
const PATIENCE_MS = 8000; // for an answer
const LATE_S = 6; // without an answer, before that is said

const by = (id) => document.getElementById(id);
const drawn = new Map(); // by element: of what it was drawn
let others = []; // pages of other candidates, for when this one does not answer
let answered = 0; // when this server did last, by this browser's monotonic clock
let timer = 0;

// ------------------------------------------------------------------------------------------------ making elements

function made(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== undefined && value !== "") element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

// Draws only what has changed: what somebody has selected or looks at stays as it is.
function draw(element, value, make) {
  const key = JSON.stringify(value);
  if (drawn.get(element) === key) return;
  drawn.set(element, key);
  element.replaceChildren(...make(value));
}

function show(element, text) {
  element.hidden = !text;
  if (element.textContent !== text) element.textContent = text;
}

// ---------------------------------------------------------------------------------------------------------- words

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  for (; count >= 1024 && unit < units.length - 1; unit++) count /= 1024;
  return `${unit ? count.toFixed(1) : count}\u00a0${units[unit]}`; // never in two lines
}

function age(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

function rate(number) {
  if (number === null) return "–";
  return number > 0 && number < 9.95 ? number.toFixed(1) : number.toFixed(0);
}

function counted(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function day(date) {
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

const two = (number) => String(number).padStart(2, "0");

function when(seconds) {
  const date = new Date(seconds * 1000);
  return `${day(date)} ${clock(date)}`;
}

const clock = (date) => `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;

// ---------------------------------------------------------------------------------------------------------- parts

const STATES = { up: "good", suspect: "warning", draining: "warning", down: "bad", lost: "bad" };
const SEVERITIES = { warning: "warning", error: "bad" };
const MIGRATION_STATES = { running: "good", paused: "warning", failed: "bad" };

function badge(text, kind) {
  return made("span", { class: `badge ${kind || ""}`.trim() }, text);
}

function healthOf(network) {
  by("health").className = network.findings.length ? "bad" : "good";
  if (!network.findings.length) return [made("p", {}, made("strong", {}, "OK"), network.summary)];
  const lines = network.findings.map((one) =>
    made("li", {}, made("strong", {}, "ATTENTION"), `${one.text} `, made("code", {}, one.look)),
  );
  return [made("ul", {}, ...lines)];
}

function figure(number, text, kind) {
  return made("div", { class: `figure ${kind || ""}`.trim() }, made("b", {}, number), made("span", {}, text));
}

function figuresOf(network) {
  const atRisk = network.below_policy;
  return [
    figure(bytes(network.free_bytes), `free of ${bytes(network.total_bytes)}`),
    figure(Math.max(0, network.inodes - 1).toLocaleString("en"), "files and directories"),
    figure(atRisk.toLocaleString("en"), atRisk === 1 ? "file at risk" : "files at risk", atRisk ? "warning" : ""),
    figure(network.damaged.toLocaleString("en"), "damaged", network.damaged ? "bad" : ""),
    figure(network.waiting_tasks.toLocaleString("en"), `tasks waiting, ${network.claimed_tasks} at work`),
    figure(network.dead_tasks.toLocaleString("en"), "tasks given up", network.dead_tasks ? "warning" : ""),
  ];
}

const COLUMNS = ["Server", "State", "Heard", "Free", "Used", "Requests/s", "To manager/s", "Queue", "Oldest", "Given up"];

function headings(names, left) {
  return made("thead", {}, made("tr", {}, ...names.map((name) => made("th", { class: left.includes(name) ? "left" : "" }, name))));
}

function cell(label, text, kind) {
  return made("td", { "data-label": label, class: kind }, text);
}

function serverOf(info) {
  const notes = info.problems.map((problem) => made("small", { class: "problem" }, problem));
  for (const volume of info.volumes.filter((one) => one.bad)) {
    notes.push(made("small", { class: "problem" }, `volume ${volume.volume} is ${volume.bad}: ${volume.path}`));
  }
  const kind = notes.length ? "left wide" : "left";
  const name = made("td", { class: kind }, made("b", {}, info.name), info.is_manager ? " · manager" : "", ...notes);
  const state = made("td", { class: "left" }, badge(info.state, STATES[info.state]));
  const total = info.total_bytes;
  const used = made("td", { "data-label": "Used" }, total ? `${Math.floor((100 * (total - info.free_bytes)) / total)} %` : "–");
  if (total) used.append(made("progress", { max: total, value: total - info.free_bytes, "aria-label": `used on ${info.name}` }));
  return made(
    "tr",
    {},
    name,
    state,
    cell("Heard", info.seen_s < 0 ? "never" : `${age(info.seen_s)} ago`, "unit"),
    cell("Free", total ? bytes(info.free_bytes) : "–", "unit"),
    used,
    cell("Requests/s", rate(info.kernel_rate)),
    cell("To manager/s", rate(info.manager_rate)),
    cell("Queue", info.waiting_tasks.toLocaleString("en")),
    cell("Oldest", info.oldest_task_s < 0 ? "–" : age(info.oldest_task_s), "unit"),
    cell("Given up", info.dead_tasks.toLocaleString("en")),
  );
}

function serversOf(servers) {
  return [headings(COLUMNS, ["Server", "State"]), made("tbody", {}, ...servers.map(serverOf))];
}

function migrationOf(row) {
  const what = row.paths.length ? row.paths.join(", ") : row.kind;
  const words = [`${row.done_files.toLocaleString("en")} of ${counted(row.files, "file", "files")}`];
  words.push(`${bytes(row.done_size)} of ${bytes(row.size)}`);
  if (row.state === "planning" || row.state === "running") {
    words.push(`${bytes(Math.round(row.rate))}/s`);
    if (row.left_s !== null) words.push(`${age(row.left_s)} left`);
  }
  if (row.failed_files) words.push(`${row.failed_files.toLocaleString("en")} failed`);
  const share = row.files ? row.done_files / row.files : 0;
  const title = made(
    "p",
    { class: "title" },
    made("b", {}, `${row.number}: ${row.source} → ${row.target || "others"}`),
    badge(row.planned || row.state === "planning" ? row.state : `${row.state}, still planning`, MIGRATION_STATES[row.state]),
    made("span", {}, what),
  );
  return made(
    "div",
    { class: "migration" },
    title,
    made("progress", { max: 1, value: share, "aria-label": `migration ${row.number}` }),
    made("p", {}, `${Math.floor(100 * share)} % · ${words.join(" · ")}`),
    row.problem ? made("p", { class: "problem" }, row.problem) : "",
  );
}

function atRiskOf(network) {
  const rows = network.at_risk.map((file) =>
    made(
      "tr",
      {},
      made("td", { class: "left wide" }, file.path),
      made("td", { class: "left wide" }, file.reason),
      cell("Since", when(file.since_s), "unit"),
    ),
  );
  const more = network.below_policy - rows.length;
  if (more > 0) {
    const text = `and ${counted(more, "more", "more")}: `;
    rows.push(made("tr", {}, made("td", { class: "left wide", colspan: 3 }, text, made("code", {}, "godwit files --below-policy"))));
  }
  return [headings(["File", "Why", "Since"], ["File", "Why"]), made("tbody", {}, ...rows)];
}

function eventOf(event) {
  const again = event.times > 1 ? ` (${event.times} times, the last at ${when(event.last_s)})` : "";
  return made(
    "li",
    {},
    made("time", {}, when(event.at_s)),
    made("span", {}, badge(event.severity, SEVERITIES[event.severity])),
    made("span", {}, event.text + again),
  );
}

function eventsOf(events) {
  return events.length ? events.map(eventOf) : [made("li", { class: "empty" }, "none")];
}

// ---------------------------------------------------------------------------------------------------------- whole

function drawNetwork(network) {
  draw(by("health"), [network.findings, network.summary], () => healthOf(network));
  draw(by("figures"), network, figuresOf);
  draw(by("servers"), network.servers, serversOf);
  by("migrations-section").hidden = !network.migrations.length;
  draw(by("migrations"), network.migrations, (rows) => rows.map(migrationOf));
  by("at-risk-section").hidden = !network.at_risk.length;
  draw(by("at-risk"), [network.at_risk, network.below_policy], () => atRiskOf(network));
  draw(by("events"), network.events, eventsOf);
}

function links(pages) {
  return pages.flatMap((page, number) => [number ? ", " : "", made("a", { href: page.url }, page.server)]);
}

// What is said before all else: that what is shown is old, or where to look instead.
function say(text, pages) {
  const notice = by("notice");
  notice.hidden = !text;
  draw(notice, [text, pages], () => [text, ...(pages.length ? [" Look at the page of ", ...links(pages), "."] : [])]);
}

function drawPicture(picture) {
  by("login").hidden = true;
  by("logout").hidden = !picture.password;
  show(by("cluster"), picture.cluster);
  document.title = `${picture.cluster} · Godwit`;
  const { network, elsewhere } = picture;
  by("network").hidden = !network;
  if (elsewhere) {
    show(by("office"), `${picture.server} · Godwit ${picture.release}`);
    say(`${elsewhere.why}.`, elsewhere.manager ? [elsewhere.manager] : elsewhere.candidates);
    return;
  }
  if (!network) {
    say(`${picture.server} is the manager: ${picture.why}.`, []);
    return;
  }
  others = network.others;
  show(by("office"), `manager ${picture.server}, term ${network.term} · Godwit ${picture.release}`);
  say(picture.why ? `Nothing newer than ${age(picture.age_s)} is known: ${picture.why}.` : "", []);
  drawNetwork(network);
  const bad = network.findings.length;
  document.title = `${bad ? "ATTENTION" : "OK"} · ${picture.cluster} · Godwit`;
  show(by("live"), `live · ${clock(new Date(network.at_s * 1000))}`);
}

function drawLogin(denied) {
  for (const id of ["network", "logout"]) by(id).hidden = true;
  for (const id of ["office", "live", "cluster"]) show(by(id), "");
  document.title = "Godwit";
  const none = "No password was set for this page: godwit page password, or a browser that has an administrator's certificate.";
  say(denied.password ? "" : none, []);
  const form = by("login");
  if (form.hidden && denied.password) {
    form.hidden = false;
    by("password").focus();
  }
}

async function look() {
  clearTimeout(timer);
  let picture = null;
  try {
    const answer = await fetch("network.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (answer.status === 401) {
      drawLogin(await answer.json());
      return;
    }
    if (!answer.ok) throw new Error(await answer.text());
    picture = await answer.json();
    answered = performance.now();
  } catch (error) {
    const silent = (performance.now() - answered) / 1000;
    if (!answered || silent >= LATE_S) {
      show(by("live"), "no answer");
      const since = answered ? ` for ${age(silent)}: what is shown here is so old` : "";
      say(`${location.host} has not answered${since}.`, others);
    }
  }
  // Nobody looks at what is hidden.
  timer = setTimeout(look, document.hidden ? 30 * LOOK_MS : LOOK_MS);
  // Last: what is wrong with drawing is no silence of the server, and does not end the looking.
  if (picture) drawPicture(picture);
}

async function logIn(event) {
  event.preventDefault();
  const field = by("password");
  show(by("refusal"), "…");
  try {
    const answer = await fetch("login", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ password: field.value }),
    });
    show(by("refusal"), answer.ok ? "" : (await answer.json()).why);
    field.value = "";
    if (answer.ok) look();
  } catch (error) {
    show(by("refusal"), `${location.host} has not answered`);
  }
}

async function logOut() {
  await fetch("logout", { method: "POST" });
  look();
}

by("login").addEventListener("submit", logIn);
by("logout").addEventListener("click", logOut);
document.addEventListener("visibilitychange", () => document.hidden || look());
look();
