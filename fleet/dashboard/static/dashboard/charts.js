// Draws each [data-chart] figure from the JSON at its data-src: lines by uPlot, the values at the cursor beside their
// names, and the same figures as a table. Colours come from the stylesheet, so both themes look right.
"use strict";

(() => {
  const REFRESH_MS = 15_000;
  const HEIGHT_PX = 220;
  const NUM_COLOURS = 6;

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (index) => css(`--series-${(index % NUM_COLOURS) + 1}`);

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function digits(value) {
    const size = Math.abs(value);
    return size >= 100 ? 0 : size >= 10 ? 1 : 2;
  }

  function number(value) {
    if (value === null || value === undefined) return "–";
    return value.toLocaleString("en-US", { maximumFractionDigits: digits(value) });
  }

  function clock(at, spanS) {
    const options = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    if (spanS > 86_400) Object.assign(options, { month: "short", day: "numeric" });
    return new Date(at * 1000).toLocaleString("en-GB", options);
  }

  // A line needs two neighbours: where points are not drawn anyway, those between two gaps are, or they would be lost.
  const lonely = (values) => [...values.keys()].filter(
    (at) => values[at] != null && values[at - 1] == null && values[at + 1] == null,
  );

  const lastKnown = (values) => values.findLast((value) => value !== null);

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.plot = figure.querySelector(".plot");
      this.keys = figure.querySelector(".keys");
      this.table = figure.querySelector("tbody");
      this.head = figure.querySelector("thead tr");
      this.empty = figure.querySelector(".note");
      this.data = null;
      this.lines = null;
      this.zoomed = false;
    }

    async refresh() {
      try {
        const answer = await fetch(this.figure.dataset.src, { headers: { Accept: "application/json" } });
        if (answer.redirected || !answer.ok) throw new Error(`${answer.status}`);
        this.show(await answer.json());
      } catch {
        this.figure.dataset.state = this.data ? "stale" : "failed";
        if (!this.data) this.sayUnreachable();
      }
    }

    show(data) {
      const sameLines = this.data && JSON.stringify(labels(this.data)) === JSON.stringify(labels(data));
      this.data = data;
      const isEmpty = data.series.length === 0;
      this.figure.dataset.state = isEmpty ? "empty" : "drawn";
      this.empty.hidden = !isEmpty;
      this.plot.hidden = isEmpty;
      this.figure.querySelector("details").hidden = isEmpty;
      if (isEmpty) return;
      if (sameLines && this.lines) this.lines.setData(columns(data), !this.zoomed);
      else this.draw();
      this.showKeys(null);
      this.showTable();
    }

    sayUnreachable() {
      this.empty.replaceChildren(element("p", "", "The figures could not be loaded. The next attempt is in a moment."));
      this.empty.hidden = false;
      this.plot.hidden = true;
    }

    draw() {
      this.lines?.destroy();
      this.zoomed = false;
      this.lines = new uPlot(this.options(), columns(this.data), this.plot);
    }

    options() {
      const { unit, series } = this.data;
      const spanS = this.data.end - this.data.start;
      const axis = { stroke: css("--ink-3"), font: `12px ${css("--text")}`, labelFont: `12px ${css("--text")}` };
      const grid = { stroke: css("--grid"), width: 1 };
      const ticks = { stroke: css("--grid"), width: 1, size: 4 };
      return {
        width: this.width(),
        height: HEIGHT_PX,
        padding: [10, 12, 0, 0],
        legend: { show: false },
        cursor: { sync: { key: "page" }, y: false, points: { size: 7 } },
        hooks: {
          setCursor: [(plot) => this.showKeys(plot.cursor.idx)],
          setScale: [(plot, key) => key === "x" && this.noteZoom(plot.scales.x)],
          drawClear: [(plot) => this.drawMarks(plot)],
        },
        scales: {
          x: { time: true, range: () => [this.data.start, this.data.end] },
          y: { range: (_, low, high) => [0, high > 0 ? high * 1.12 : 1] },
        },
        axes: [
          { ...axis, grid, ticks, size: 34, space: 64, values: (_, at) => at.map((s) => clock(s, spanS)) },
          { ...axis, grid, ticks, size: 56, label: unit, labelSize: 18, labelGap: 0, values: (_, all) => all.map(number) },
        ],
        series: [
          {},
          ...series.map((line, index) => ({
            label: line.label,
            stroke: colour(index),
            width: 1.75,
            points: { size: 5, fill: colour(index), filter: (plot, place, all) => (all ? null : lonely(plot.data[place])) },
          })),
        ],
      };
    }

    noteZoom({ min, max }) {
      this.zoomed = min !== this.data.start || max !== this.data.end;
    }

    drawMarks(plot) {
      const { ctx, bbox } = plot;
      ctx.save();
      ctx.strokeStyle = css("--mute-solid");
      ctx.setLineDash([4, 4]);
      for (const mark of this.data.marks) {
        const x = Math.round(plot.valToPos(mark.at, "x", true)) + 0.5;
        if (x < bbox.left || x > bbox.left + bbox.width) continue;
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
      }
      ctx.restore();
    }

    showKeys(index) {
      const { series, unit, marks, num_left_out: numLeftOut } = this.data;
      const atCursor = index !== null && index !== undefined;
      const keys = series.map((line, place) => {
        const value = atCursor ? line.values[index] : lastKnown(line.values);
        return key(`series-${(place % NUM_COLOURS) + 1}`, line.label, `${number(value)} ${unit}`);
      });
      if (marks.length) keys.push(key("mark-line", "a rollout began", ""));
      if (numLeftOut) keys.push(element("li", "quiet", `and ${numLeftOut} lower ones`));
      this.keys.replaceChildren(...keys);
    }

    showTable() {
      const { at, series, unit, start, end } = this.data;
      this.head.replaceChildren(
        columnHead("Time"),
        ...series.map((line) => columnHead(`${line.label}, ${unit}`, "num")),
      );
      const rows = at.map((moment, index) => {
        const row = element("tr");
        const time = element("th", "tabular", clock(moment, end - start));
        time.scope = "row";
        row.append(time, ...series.map((line) => element("td", "num", number(line.values[index]))));
        return row;
      });
      this.table.replaceChildren(...rows.reverse());
    }

    width() {
      return Math.max(this.plot.clientWidth, 200);
    }

    resize() {
      if (this.lines && !this.plot.hidden) this.lines.setSize({ width: this.width(), height: HEIGHT_PX });
    }
  }

  const labels = (data) => [data.unit, ...data.series.map((line) => line.label)];
  const columns = (data) => [data.at, ...data.series.map((line) => line.values)];

  function key(swatch, label, value) {
    const item = element("li");
    item.append(element("span", `swatch ${swatch}`), element("span", "", label), element("span", "value", value));
    return item;
  }

  function columnHead(text, className) {
    const cell = element("th", className, text);
    cell.scope = "col";
    return cell;
  }

  const charts = [...document.querySelectorAll("[data-chart]")].map((figure) => new Chart(figure));
  const refreshAll = () => document.hidden || charts.forEach((chart) => chart.refresh());
  const watcher = new ResizeObserver((entries) => {
    for (const entry of entries) charts.find((chart) => chart.plot === entry.target)?.resize();
  });

  charts.forEach((chart) => {
    watcher.observe(chart.plot);
    chart.refresh();
  });
  setInterval(refreshAll, REFRESH_MS);
  document.addEventListener("visibilitychange", refreshAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    charts.forEach((chart) => chart.lines && chart.draw());
  });
})();
