// The script that draws the page stands packed in it; the page's policy knows its hash.

{
  const script = document.createElement("script");
  const packed = document.getElementById("code").textContent;
  script.textContent = new TextDecoder().decode(unpack(packed));
  document.body.append(script);
}
