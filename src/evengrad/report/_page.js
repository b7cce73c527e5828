(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");

  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.from).textContent;
      let done = false;
      try { await navigator.clipboard.writeText(text); done = true; } catch { done = copyBySelection(text); }
      button.textContent = done ? "Copied" : "Select and copy by hand";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  function copyBySelection(text) {
    const area = document.createElement("textarea");
    area.value = text;
    area.style.position = "fixed";
    area.style.opacity = "0";
    document.body.append(area);
    area.select();
    let done = false;
    try { done = document.execCommand("copy"); } catch { done = false; }
    area.remove();
    return done;
  }

  const packed = document.getElementById("plotly-packed");
  const data = document.getElementById("figures");
  if (!packed || !data || typeof DecompressionStream === "undefined") return;

  const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const hosts = [...document.querySelectorAll("[data-figure]")];
  let figures = [];

  async function load() {
    const bytes = Uint8Array.from(atob(packed.textContent.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    script.remove();
    figures = JSON.parse(data.textContent);
    if (!window.Plotly) return;
    for (const host of hosts) draw(host);
    scheme.addEventListener("change", () => hosts.forEach(draw));
  }

  function traces(figure) {
    return figure.data.map((trace) => {
      if (trace.type === "heatmap") {
        return trace.colorbar ? { ...trace, colorbar: { ...trace.colorbar, tickfont: { color: colour("soft") } } } : trace;
      }
      if (trace.meta === "break") return { ...trace, marker: { ...trace.marker, color: colour("break") } };
      const paint = colour(trace.meta);
      return { ...trace, line: { ...trace.line, color: paint }, marker: { ...trace.marker, color: paint } };
    });
  }

  function layout(figure, narrow) {
    const quiet = { gridcolor: colour("line"), linecolor: colour("line"), tickcolor: colour("line") };
    const made = structuredClone(figure.layout);
    made.paper_bgcolor = "rgba(0,0,0,0)";
    made.plot_bgcolor = "rgba(0,0,0,0)";
    made.font = { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 12.5, color: colour("soft") };
    made.hoverlabel = { bgcolor: colour("paper"), bordercolor: colour("line"), font: { color: colour("ink") }, align: "left" };
    made.xaxis = { ...made.xaxis, ...quiet };
    made.yaxis = { ...made.yaxis, ...quiet };
    made.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("accent") };
    made.dragmode = narrow ? false : "zoom";
    if (narrow) made.margin.t = 10;
    if (narrow && made.meta && made.meta.narrow_ticktext) made.yaxis.ticktext = made.meta.narrow_ticktext;
    return made;
  }

  function draw(host) {
    const figure = figures[Number(host.dataset.figure)];
    const frame = host.closest("figure");
    frame.classList.add("live");
    const narrow = host.clientWidth < 560;
    const settings = {
      displaylogo: false, responsive: true, displayModeBar: narrow ? false : "hover",
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], plotlyServerURL: "", // none that sends data
    };
    Plotly.react(host, traces(figure), layout(figure, narrow), settings).catch(() => frame.classList.remove("live"));
  }

  load().catch(() => hosts.forEach((host) => host.closest("figure").classList.remove("live")));
})();
