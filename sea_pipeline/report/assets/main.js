// Pages by the address, the theme, keys that work everywhere.

function pages(built) {
  const links = [...byId("pages").children];
  function show() {
    const wanted = location.hash.slice(1);
    const link = links.find((each) => each.getAttribute("href") === `#${wanted}`) ?? links[0];
    if (!link) return;
    for (const each of links) {
      const name = each.getAttribute("href").slice(1), current = each === link;
      if (current) each.setAttribute("aria-current", "page");
      else each.removeAttribute("aria-current");
      byId(`page-${name}`).hidden = !current;
      if (current) { built[name]?.(); delete built[name]; }
    }
  }
  window.addEventListener("hashchange", () => { show(); window.scrollTo(0, 0); });
  show();
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const now = root.dataset.theme ?? (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    announce(`${root.dataset.theme} colours`);
  });
}

function labelPages(labels) {
  const idBox = byId("photo");
  let word = "";
  const update = gallery(labels, (photo, shown) => openPhoto(photo, shown));
  const searched = (text) => { word = text; update(word, idBox.value.trim()); };
  const take = wordBox(labels, searched);
  const search = (text) => { if (location.hash !== "#photos") location.hash = "#photos"; take(text); window.scrollTo(0, 0); };
  const openPhoto = viewer(labels, search);
  idBox.addEventListener("input", () => update(word, idBox.value.trim()));
  update("", "");
  return { words: () => wordsPage(labels, search), settings: () => settingsPage(labels) };
}

theme();
document.querySelector(".skip").addEventListener("click", (event) => { // the address names the page
  event.preventDefault();
  byId("main").focus();
});
document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "") && document.activeElement.type !== "range";
  if (event.key !== "/" || typing || !data.labels || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  const focus = () => byId("word").focus();
  if (!byId("page-photos").hidden) return focus(); // at once, so that no letter that follows is lost
  addEventListener("hashchange", focus, { once: true });
  location.hash = "#photos";
});
pages({
  ...(data.labels ? labelPages(new Labels(data.labels)) : {}),
  ...(data.runs ? { tokens: () => tokensPage(data.runs), texts: () => textsPage(data.runs), metrics: () => metricsPage(data.runs), recipes: () => recipesPage(data.runs) } : {}),
});
document.documentElement.dataset.ready = "";
