"use strict";
{
  const cases = [...document.querySelectorAll(".case")];
  // A link to something that lies in a closed box opens the box.
  const open = () => {
    const id = decodeURIComponent(location.hash.slice(1));
    const target = id && document.getElementById(id);
    if (!target) return;
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();

  const tools = document.getElementById("tools");
  if (tools) {
    tools.hidden = false;
    const find = document.getElementById("find");
    const found = document.getElementById("found");
    find.addEventListener("input", () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const box of cases) {
        const text = box.dataset.text.toLowerCase();
        box.hidden = !words.every((word) => text.includes(word));
        count += !box.hidden;
      }
      for (const group of document.querySelectorAll(".group"))
        group.hidden = !group.querySelector(".case:not([hidden])");
      found.textContent = words.length ? `${count} of ${cases.length} cases` : "";
    });
    const all = document.getElementById("open-all");
    all.addEventListener("click", () => {
      const opening = all.getAttribute("aria-pressed") !== "true";
      all.setAttribute("aria-pressed", opening);
      all.textContent = opening ? "Close all" : "Open all";
      for (const box of cases) if (!box.hidden) box.open = opening;
    });
  }
  addEventListener("beforeprint", () => cases.forEach((box) => (box.open = true)));
}
