// Plays a video while it comes in: each fragment, a chunk of it, is given to the browser as soon as it is there. A plain
// <video> would wait for several of them first; it is what browsers without MediaSource get.

const KEPT_SECONDS = 120; // behind what plays, of long videos

export async function playGrowing(video, address, signal) {
  const Source = window.ManagedMediaSource ?? window.MediaSource;
  if (!Source) return playPlain(video, address);
  const source = new Source();
  const opened = happening(source, "sourceopen");
  video.disableRemotePlayback = true; // what ManagedMediaSource asks for
  video.src = URL.createObjectURL(source);
  await opened;
  URL.revokeObjectURL(video.src);
  const pieces = (await fetch(address, { signal })).body.getReader();
  let head = new Uint8Array(0), buffer = null, playing = false;
  for (let piece = await pieces.read(); !piece.done; piece = await pieces.read()) {
    let bytes = piece.value;
    if (!buffer) {
      head = bytes = joined(head, bytes);
      const kind = kindOf(head);
      if (!kind) continue;
      if (!Source.isTypeSupported(kind)) return playPlain(video, address);
      buffer = source.addSourceBuffer(kind);
    }
    await append(buffer, bytes, video);
    if (!playing && video.buffered.length) {
      playing = true;
      video.currentTime = video.buffered.start(0); // the encoder reorders: the first frame is shown two frames late
      video.play().catch(() => {}); // where the browser wants a click first
    }
  }
  if (source.readyState === "open") source.endOfStream();
}

export function playPlain(video, address) {
  video.src = address;
  video.play().catch(() => {});
}

// "video/mp4; codecs=..." by the avcC box in the beginning of a file; nothing as long as it is not there.
function kindOf(head) {
  for (let at = 4; at + 8 <= head.length; at++) {
    if (head[at] === 0x61 && head[at + 1] === 0x76 && head[at + 2] === 0x63 && head[at + 3] === 0x43) {
      const level = [...head.slice(at + 5, at + 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
      return `video/mp4; codecs="avc1.${level}"`;
    }
  }
  return null;
}

async function append(buffer, bytes, video) {
  const held = buffer.buffered;
  if (held.length && video.currentTime - held.start(0) > 2 * KEPT_SECONDS) {
    buffer.remove(held.start(0), video.currentTime - KEPT_SECONDS);
    await happening(buffer, "updateend");
  }
  const done = happening(buffer, "updateend");
  buffer.appendBuffer(bytes);
  await done;
}

function joined(first, second) {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

const happening = (what, name) => new Promise((resolve) => what.addEventListener(name, resolve, { once: true }));
