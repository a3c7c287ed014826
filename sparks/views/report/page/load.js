// The style and the script that draws the page stand packed in it; the page's policy knows their
// hashes. The style comes first, so that nothing is seen without it.

{
  const add = (tag, name, place) => {
    const element = document.createElement(tag);
    const packed = document.getElementById(name).textContent;
    element.textContent = new TextDecoder().decode(unpack(packed));
    place.append(element);
  };
  add("style", "style", document.head);
  document.addEventListener("DOMContentLoaded", () => add("script", "code", document.body));
}
