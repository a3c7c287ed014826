// The page stands packed in itself: its style, the script that draws it, its arrays. All is unpacked
// before any of it is shown; the page's policy knows the hashes of script and style.

let PAGE = null;  // what the page is given

async function unpack(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new DecompressionStream("deflate"), writer = stream.writable.getWriter();
  Promise.all([writer.write(bytes), writer.close()]).catch(() => {});  // the reader is told as well
  return new Uint8Array(await new Response(stream.readable).arrayBuffer());
}

// JSON, in which each {packed: text} becomes bytes.
async function unpackAll(text) {
  const waiting = [], value = JSON.parse(text, function (key, part) {
    if (part && part.packed) {
      waiting.push(unpack(part.packed).then(bytes => { this[key] = bytes; }));
    }
    return part;
  });
  await Promise.all(waiting);
  return value;
}

async function load() {
  const textOf = name => document.getElementById(name).textContent;
  const [style, code, page] = await Promise.all([unpack(textOf("style")), unpack(textOf("code")),
    unpackAll(textOf("data"))]);
  PAGE = page;
  const add = (tag, bytes, place) => {
    const element = document.createElement(tag);
    element.textContent = new TextDecoder().decode(bytes);
    place.append(element);
  };
  add("style", style, document.head);
  document.documentElement.hidden = false;  // its parts are measured
  add("script", code, document.body);
}

document.documentElement.hidden = true;
document.addEventListener("DOMContentLoaded", () => load().catch(reason => {
  const {documentElement: root} = document, failure = document.getElementById("failure");
  root.dataset.error = String(reason);
  root.hidden = failure.hidden = false;
  failure.textContent = "This report could not be unpacked, is the browser older than 2023, or the " +
    "file cut? " + reason;
}));
