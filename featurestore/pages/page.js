"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data");
  const inline = read("inline");
  const at = (id) => document.getElementById(id);
  const names = data.classes.map(([, name]) => name);
  const clipOf = new Map(data.clips.map((clip) => [clip.key, clip]));
  const CARDS_AT_A_TIME = 24;
  const ROWS_AT_A_TIME = 200;

  // Text from data only ever becomes text: nothing here writes HTML.
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "style") Object.assign(element.style, value);
      else if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  const address = (clip, ending) => inline[clip.file + ending] ?? `clips/${clip.file}${ending}`;
  const linkTo = (key) => make("a", { href: `#q=${encodeURIComponent(key)}`, title: key }, key);

  // A view shows one of the pictures that lie below one another in a file.
  function sheet(clip, ending, place, count, description) {
    return make("img", {
      loading: "lazy", alt: description, src: address(clip, ending),
      className: ending === ".png" ? "crisp" : "",
      style: { height: `${count * 100}%`, top: `${-place * 100}%` },
    });
  }

  function view(clip, title, images, isTall) {
    const khz = make("div", { className: "khz" });
    for (const [place, text] of data.khz.filter(([, text]) => isTall || text === "1" || text === "4")) {
      if (place < 0.97) khz.append(make("span", { style: { bottom: `${place * 100}%` } }, text));
    }
    const repeats = clip.repeats < 1
      ? make("div", { className: "repeats", title: "from here on the sound is repeated", style: { left: `${clip.repeats * 100}%` } })
      : null;
    const frame = make("div", { className: isTall ? "view tall" : "view" }, ...images, repeats);
    frame.style.setProperty("--shape", data.shape);
    return [make("div", { className: "name" }, title), khz, frame];
  }

  function pictures(clip) {
    const spectrogram = (description) => sheet(clip, ".webp", 0, 2, description);
    const views = [
      view(clip, "spectrogram, kHz", [spectrogram("spectrogram")], true),
      view(clip, "HOG", [sheet(clip, ".webp", 1, 2, "stars of its HOG")], false),
    ];
    if (data.overlays) {
      views.push(
        view(clip, "prior S (dark: 0, bright: 1)", [sheet(clip, ".png", 2, 3, "prior")], false),
        view(clip, "an intra mask", [spectrogram(""), sheet(clip, ".png", 0, 3, "an intra mask")], false),
        view(clip, "an inter mask", [spectrogram(""), sheet(clip, ".png", 1, 3, "an inter mask")], false),
      );
    }
    const seconds = make("div", { className: "seconds" });
    for (const [place, text] of data.time) {
      seconds.append(make("span", { style: { left: `${place * 100}%` } }, text === "0" ? "0 s" : text));
    }
    return make("div", { className: "pictures" }, ...views.flat(), seconds);
  }

  function listed(title, items, none) {
    const list = make("ul", {}, ...items.map(([one, other]) => make("li", {}, one, make("span", {}, other))));
    return make("div", {}, make("h4", {}, title), items.length ? list : make("span", { className: "note" }, none));
  }

  function card(clip) {
    const enlarge = make("button", { type: "button" }, "enlarge");
    const chips = clip.labels.map((label) => make("a", { href: `#class=${encodeURIComponent(data.classes[label][0])}` }, names[label]));
    if (clip.split !== null) chips.push(make("span", { className: "split" }, clip.split));
    const near = clip.near.map(([other, cosine]) => {
      const labels = data.clips[other].labels.map((label) => names[label]).join(", ");
      return [make("span", {}, linkTo(data.clips[other].key), labels ? ` ${labels}` : ""), cosine.toFixed(3)];
    });
    const tags = clip.tags.map(([name, score]) => [make("span", { title: name }, name), score.toFixed(2)]);
    const sound = clip.silence === null
      ? make("audio", { controls: true, preload: "none", src: address(clip, ".mp3") })
      : make("p", { className: "note" }, `No sound: ${clip.silence}`);
    const about = clip.about.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
    const item = make("li", { "data-key": clip.key },
      make("div", { className: "title" }, make("h3", {}, clip.key), enlarge),
      make("div", { className: "chips" }, ...chips),
      pictures(clip),
      sound,
      make("div", { className: "card-text" },
        data.teacher === null ? null : listed(`${data.teacher}'s tags`, tags, "none"),
        data.teacher === null ? null : listed("nearest on this page", near, "none")),
      make("details", {}, make("summary", {}, "provenance"), make("dl", {}, ...about)));
    enlarge.addEventListener("click", () => {
      enlarge.textContent = item.classList.toggle("large") ? "shrink" : "enlarge";
    });
    return item;
  }

  function failureRow(failure) {
    return make("li", { "data-key": failure.key },
      make("span", {}, failure.key),
      make("span", { className: "why" }, failure.reason),
      make("span", {}, failure.detail),
      make("span", { className: "muted" }, [failure.labels.map((label) => names[label]).join(", "), failure.source].filter(Boolean).join(" · ")));
  }

  // Elements are made as they come near the window: thousands of clips cost no more than the first few.
  function growing(list, build, step) {
    let items = [];
    const sentinel = make("div");
    list.after(sentinel);
    const grow = () => {
      const start = list.childElementCount;
      list.append(...items.slice(start, start + step).map(build));
      observer.unobserve(sentinel);
      if (list.childElementCount < items.length) observer.observe(sentinel);
    };
    const observer = new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && grow(), { rootMargin: "1200px" });
    return (shown) => {
      items = shown;
      list.replaceChildren();
      grow();
    };
  }

  const texts = new Map();
  for (const clip of data.clips) {
    const about = clip.about.filter(([name]) => name === "source").map(([, value]) => value);
    texts.set(clip, [clip.key, ...clip.labels.map((label) => names[label]), ...clip.tags.map(([name]) => name), ...about].join("\n").toLowerCase());
  }
  for (const failure of data.failures) {
    texts.set(failure, [failure.key, ...failure.labels.map((label) => names[label]), failure.source, failure.reason, failure.detail].join("\n").toLowerCase());
  }

  const fields = ["q", "class", "split", "reason"].map(at);
  const showClips = growing(at("clip-list"), card, CARDS_AT_A_TIME);
  const showFailures = growing(at("failure-list"), failureRow, ROWS_AT_A_TIME);
  const count = (shown, all) => (shown === all ? all.toLocaleString("en") : `${shown.toLocaleString("en")} of ${all.toLocaleString("en")}`);

  function option(select, value, text, number) {
    select.append(make("option", { value }, number === undefined ? text : `${text} (${number})`));
  }

  function tally(values) {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
    return counts;
  }

  function fillSelects() {
    const all = [...data.clips, ...data.failures];
    const perClass = tally(all.flatMap((one) => one.labels));
    data.classes.forEach(([id, name], label) => perClass.has(label) && option(at("class"), id, name, perClass.get(label)));
    const sorted = (counts) => [...counts].sort(([one], [other]) => (one < other ? -1 : 1));
    for (const [split, number] of sorted(tally(all.map((one) => one.split).filter((split) => split !== null)))) option(at("split"), split, split, number);
    for (const [reason, number] of sorted(tally(data.failures.map((one) => one.reason)))) option(at("reason"), reason, reason, number);
    for (const select of [at("class"), at("split"), at("reason")]) select.hidden = select.options.length < 2;
  }

  // The address holds the filters, so that a link shows the same clips again.
  function readAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const field of fields) {
      const value = wanted.get(field.id) ?? "";
      const known = field.id === "class" ? data.classes.find(([id, name]) => id === value || name.toLowerCase() === value.toLowerCase()) : undefined;
      field.value = known ? known[0] : value;
      if (field.value === "" && value !== "" && field.id !== "q") {
        option(field, value, value, 0);
        field.value = value;
        field.hidden = false;
      }
    }
    show();
  }

  function writeAddress() {
    const said = new URLSearchParams(fields.filter((field) => field.value).map((field) => [field.id, field.value]));
    history.replaceState(null, "", `#${said}`);
    show();
  }

  function show() {
    const [q, label, split, reason] = fields.map((field) => field.value);
    const words = q.toLowerCase().split(/\s+/).filter(Boolean);
    const position = label === "" ? -1 : data.classes.findIndex(([id]) => id === label);
    const fits = (one) =>
      (label === "" || one.labels.includes(position)) && (split === "" || one.split === split) && words.every((word) => texts.get(one).includes(word));
    const clips = reason === "" ? data.clips.filter(fits) : [];
    const failures = data.failures.filter((one) => (reason === "" || one.reason === reason) && fits(one));
    at("clips").hidden = reason !== "";
    at("no-clips").hidden = clips.length > 0;
    at("no-failures").hidden = failures.length > 0;
    at("num-clips").textContent = count(clips.length, data.clips.length);
    at("num-failures").textContent = count(failures.length, data.failures.length);
    at("found").textContent = `${clips.length.toLocaleString("en")} clips, ${failures.length.toLocaleString("en")} failures`;
    showClips(clips);
    showFailures(failures);
  }

  function showDuplicates() {
    at("num-duplicates").textContent = data.duplicates.length.toLocaleString("en");
    const named = (key) => (clipOf.has(key) ? linkTo(key) : make("span", {}, key));
    at("duplicate-list").append(...data.duplicates.map(({ cosine, keys, more }) =>
      make("li", {}, make("span", { className: "kind" }, cosine === null ? "equal fbank" : `cosine ${cosine.toFixed(4)}`),
        ...keys.flatMap((key, place) => (place ? [", ", named(key)] : [named(key)])),
        more ? ` and ${more} more` : "")));
    if (!data.duplicates.length) at("duplicate-list").after(make("p", { className: "empty" }, "None found."));
  }

  function sortClasses(button) {
    const body = at("class-table").tBodies[0];
    const key = button.dataset.sort;
    const heading = button.closest("th");
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    const value = (row) => (key === "name" ? row.dataset.name : Number(row.dataset[key]));
    const rows = [...body.rows].sort((one, other) => (value(one) < value(other) ? -1 : value(one) > value(other) ? 1 : 0));
    body.append(...(ascending ? rows : rows.reverse()));
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  }

  fillSelects();
  showDuplicates();
  readAddress();
  addEventListener("hashchange", () => {
    readAddress();
    if (location.hash.length > 1) at("filters").scrollIntoView();
  });
  at("filters").addEventListener("input", writeAddress);
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("filters").addEventListener("reset", () => setTimeout(writeAddress));
  for (const button of document.querySelectorAll("[data-sort]")) button.addEventListener("click", () => sortClasses(button));
  for (const link of document.querySelectorAll("[data-go]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      at(link.dataset.go).scrollIntoView();
    });
  }
  document.documentElement.dataset.ready = "true";
})();
