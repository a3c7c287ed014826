// A served page asks for a newer one, and loads itself again in the same place when there is.

const LIVE = make("p", {id: "live", role: "status", text: "Waiting for the server."});
const ABOUT_LIVE = {position: "fixed", inset: "auto 0 0", zIndex: 8, margin: 0, padding: "2px 12px",
  fontSize: "13px", background: "var(--raised)", borderTop: "1px solid var(--line)"};

async function follow() {
  let text = "The server does not answer: this page stays as it was.";
  try {
    const answer = await fetch("/version", {cache: "no-store"});
    if (answer.ok) {
      const now = await answer.json();
      if (now.version !== PAGE.follow.version) return loadAgain();
      text = "Live: " + now.text + (now.problem ? "; " + now.problem : "");
    }
  } catch {
    // Said already.
  }
  if (LIVE.textContent !== text) LIVE.textContent = text;
  return setTimeout(follow, 1000 * PAGE.follow.seconds);
}

// A reader at the last checkpoint goes on to the next: the step leaves the address.
function loadAgain() {
  const link = location.hash.replace(/(#|&)step=[^&]*/, view.cursor === run.times - 1 ? "$1" : "$&");
  history.replaceState([scrollX, scrollY], "", link);
  location.reload();
}

Object.assign(LIVE.style, ABOUT_LIVE);
document.body.append(LIVE);
follow();
