// The page of scripts/serve.sh: orders, one video on the stage while it is made, and those that are done.
import { drawLikeness } from "/page/likeness.js";
import { ReuseMap } from "/page/map.js";
import { playGrowing, playPlain } from "/page/stream.js";

const $ = (id) => document.getElementById(id);
const map = new ReuseMap($("map"));
let shown = null; // the video on the stage
let source = null; // its events
let watching = new AbortController(); // the streams that play
let twinSource = null; // those of the uncached video beside it

async function ask(path, options = {}) {
  const answer = await fetch(path, options);
  const text = await answer.text();
  let found;
  try { found = JSON.parse(text); } catch { found = { error: { message: text } }; }
  if (!answer.ok) throw new Error(found.error?.message ?? JSON.stringify(found.detail ?? found));
  return found;
}

const json = (body) => ({ method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

function element(kind, text, properties = {}) {
  const made = document.createElement(kind);
  made.textContent = text;
  return Object.assign(made, properties);
}

function button(text, action) {
  const made = element("button", text, { type: "button" });
  made.addEventListener("click", () => action().catch(refuse));
  return made;
}

function refuse(error) { $("refusal").textContent = error.message; }

// The order.

async function readServer() {
  const server = await ask("/server");
  const names = { ready: "ready", starting: "loading the model…" };
  $("server").textContent = `${server.config_file.split("/").pop()}, ${server.width}×${server.height}: ${names[server.worker] ?? server.worker}`;
  if (!$("method").options.length) {
    $("method").append(new Option("multistep, by quality", "by-quality"));
    for (const name of server.methods) $("method").append(new Option(name === "none" ? "none (uncached)" : name, name));
    $("method").value = "flowcache_fast";
    $("num_steps").placeholder = server.num_steps;
    $("seed").placeholder = server.seed;
  }
  setTimeout(() => readServer().catch(() => lost()), server.worker === "ready" ? 10000 : 1000);
}

function lost() {
  $("server").textContent = "the server does not answer";
  setTimeout(() => readServer().catch(() => lost()), 2000);
}

function orderOf() {
  const form = new FormData();
  form.set("prompt", $("prompt").value);
  form.set("seconds", $("endless").checked ? "endless" : $("seconds").value);
  if ($("method").value === "by-quality") form.set("target_psnr", $("target").value);
  else form.set("method", $("method").value);
  for (const name of ["num_steps", "seed"]) if ($(name).value) form.set(name, $(name).value);
  if ($("file").files.length) form.set("input_reference", $("file").files[0]);
  return form;
}

$("order").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("refusal").textContent = "";
  $("make").disabled = true;
  try {
    show(await ask("/videos", { method: "POST", body: orderOf() }));
  } catch (error) {
    refuse(error);
  } finally {
    $("make").disabled = false;
    readGallery().catch(refuse);
  }
});

$("method").addEventListener("change", () => { $("target-row").hidden = $("method").value !== "by-quality"; });
$("target").addEventListener("input", () => { $("target-shown").textContent = $("target").value; });
$("endless").addEventListener("change", () => { $("seconds").disabled = $("endless").checked; });
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) $("file").files = event.dataTransfer.files;
  });
}

// The stage.

const methodOf = (order) => order.method ?? (order.target_psnr ? `multistep at ${order.target_psnr} dB` : order.target_speedup ? `${order.target_speedup} times faster` : "none");

function show(video) {
  source?.close();
  twinSource?.close();
  shown = video;
  $("likeness").hidden = true;
  map.clear();
  $("stage").hidden = false;
  $("twin").hidden = true;
  $("stage-title").textContent = video.order.prompt;
  $("caption").textContent = methodOf(video.order);
  $("prompts").replaceChildren(element("li", video.order.prompt));
  for (const name of ["left", "rate", "reused", "chunks"]) $(name).textContent = "–";
  $("progress").value = video.progress;
  $("links").replaceChildren();
  $("video").removeAttribute("poster");
  say(video);
  const ended = ["completed", "stopped", "failed"].includes(video.status);
  watching.abort();
  watching = new AbortController();
  if (ended) playPlain($("video"), `/videos/${video.id}/content`);
  else play($("video"), video.id);
  source = new EventSource(`/videos/${video.id}/events`);
  for (const kind of ["in_progress", "begun", "preview", "step", "chunk", "prompt", "refused", "completed", "stopped", "failed"]) {
    source.addEventListener(kind, (event) => onEvent(video, kind, JSON.parse(event.data)));
  }
  if (ended) finish(video, video.status);
  $("stage").scrollIntoView({ block: "nearest" });
}

function play(screen, id) {
  const { signal } = watching;
  playGrowing(screen, `/videos/${id}/stream`, signal).catch((error) => { if (!signal.aborted) refuse(error); });
}

function onEvent(video, kind, event) {
  if (video !== shown) return;
  if (kind === "begun") Object.assign(video, { chunks: event.chunks, status: "in_progress" });
  if (kind === "step") {
    map.add(event);
    const all = event.cost.computed + event.cost.reused;
    $("reused").textContent = `${Math.round((100 * event.cost.reused) / Math.max(all, 1))} %`;
  }
  if (kind === "preview") $("video").poster = event.picture; // until the browser has enough to play
  if (kind === "chunk") onChunk(video, event);
  if (kind === "prompt") $("prompts").append(element("li", `${event.prompt} (from chunk ${event.chunk} on)`));
  if (kind === "refused") $("status").textContent = event.message;
  if (["completed", "stopped", "failed"].includes(kind)) finish(video, kind, event.message);
  else if (!["step", "preview", "refused"].includes(kind)) say(video);
}

function onChunk(video, event) {
  video.chunks_done = event.number + 1;
  const rate = video.chunks_done / event.seconds;
  $("rate").textContent = rate.toFixed(2);
  $("chunks").textContent = video.chunks ? `${video.chunks_done} of ${video.chunks}` : `${video.chunks_done}`;
  $("left").textContent = video.chunks ? `${Math.max(0, Math.round((video.chunks - video.chunks_done) / rate))} s` : "until you stop it";
  $("progress").value = video.chunks ? (100 * video.chunks_done) / video.chunks : 0;
}

function say(video) {
  const words = { queued: video.position ? `${video.position} before it` : "next", in_progress: "being made", completed: "done", stopped: "stopped; what was made is kept", failed: video.error?.message ?? "failed" };
  $("status").textContent = words[video.status];
  $("steer").hidden = video.status !== "in_progress";
}

async function finish(video, status, message) {
  source?.close();
  Object.assign(video, { status }, message ? { error: { message } } : {});
  say(video);
  if (status !== "failed") $("progress").value = 100;
  const now = await ask(`/videos/${video.id}`).catch(() => video);
  if (video !== shown) return;
  if (now.has_file) {
    const links = [["Download", "content"], ["Sidecar", "sidecar"], ["Reuse map", "reuse_map"]];
    $("links").replaceChildren(...links.map(([text, path]) => element("a", text, { href: `/videos/${video.id}/${path}` })));
    if (methodOf(video.order) !== "none") $("links").append(button("Side by side with the uncached video", () => beside(video)));
    // Now it can be seeked in; not while it plays.
    $("video").addEventListener("ended", () => { if (video === shown) $("video").src = `/videos/${video.id}/content`; }, { once: true });
  }
  readGallery().catch(refuse);
}

async function beside(video) {
  const twin = await ask(`/videos/${video.id}/again`, json({ method: "none" }));
  $("twin").hidden = false;
  $("twin-caption").textContent = "none (uncached), the same noise";
  play($("twin-video"), twin.id);
  playPlain($("video"), `/videos/${video.id}/content`);
  readGallery().catch(refuse);
  const found = [];
  twinSource = new EventSource(`/videos/${twin.id}/events`);
  twinSource.addEventListener("likeness", (event) => {
    found.push(JSON.parse(event.data).psnr);
    if (video === shown) drawLikeness($("likeness"), $("likeness-curve"), $("likeness-words"), found);
  });
  for (const kind of ["completed", "stopped", "failed"]) twinSource.addEventListener(kind, () => { twinSource.close(); readGallery().catch(refuse); });
}

$("steer").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await ask(`/videos/${shown.id}/prompt`, json({ prompt: $("next").value }));
    $("next").value = "";
  } catch (error) {
    $("status").textContent = error.message;
  }
});
$("stop").addEventListener("click", () => ask(`/videos/${shown.id}/stop`, { method: "POST" }).then(() => { $("status").textContent = "stopping: the chunks under way are finished"; }, refuse));

// The gallery.

async function readGallery() {
  const { data } = await ask("/videos");
  $("empty").hidden = data.length > 0;
  $("gallery").replaceChildren(...data.map(entry));
}

function entry(video) {
  const item = document.createElement("li");
  const what = element("div", video.order.prompt, { className: "what" });
  what.append(element("small", `${methodOf(video.order)} · ${video.order.seconds ?? "no fixed number of"} s · ${video.status.replace("_", " ")}`));
  item.append(what, button("Show", async () => show(await ask(`/videos/${video.id}`))), button("Again with…", async () => again(video.order)));
  if (video.status === "queued") item.append(button("Take back", () => change(`/videos/${video.id}/stop`, "POST")));
  if (!["queued", "in_progress"].includes(video.status)) item.append(button("Delete", () => change(`/videos/${video.id}`, "DELETE")));
  return item;
}

async function change(path, method) {
  await ask(path, { method });
  await readGallery();
}

function again(order) {
  $("prompt").value = order.prompt;
  $("endless").checked = order.seconds === null;
  $("seconds").disabled = order.seconds === null;
  if (order.seconds !== null) $("seconds").value = order.seconds;
  $("num_steps").value = order.num_steps ?? "";
  $("seed").value = order.seed ?? "";
  $("method").focus();
}

readServer().catch(() => lost());
readGallery().then(async () => {
  // After a reload, what is being made is on the stage again.
  const { data } = await ask("/videos");
  const running = data.find((video) => video.status === "in_progress");
  if (running) show(running);
}).catch(refuse);
