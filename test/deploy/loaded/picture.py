#!/usr/bin/env python3
"""Draws deploy/grafana/zoho-worker.json from a Prometheus, without Grafana.

    python3 picture.py http://127.0.0.1:9090 MINUTES dashboard.png [END, seconds since 1970]

It asks Prometheus what each panel asks and lays the answers out as the dashboard
does, in HTML, of which chromium makes the picture. Only for documentation: units
and colours come near Grafana's.
"""
import html, json, math, os, re, subprocess, sys, tempfile, time, urllib.parse, urllib.request

prometheus, minutes, target = sys.argv[1], float(sys.argv[2]), sys.argv[3]
here = os.path.dirname(os.path.abspath(__file__))
dashboard = json.load(open(os.path.join(here, "../../../deploy/grafana/zoho-worker.json")))
end = float(sys.argv[4]) if len(sys.argv) > 4 else time.time()
start = end - minutes * 60
step = max(2, int(minutes * 60 / 240))
PALETTE = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#96d98d", "#ffcb7d", "#fa6400", "#37872d", "#e0b400"]
NAMED = {"green": "#73bf69", "red": "#f2495c", "orange": "#ff9830", "blue": "#5794f2", "purple": "#b877d9", "dark-red": "#c4162a"}
CELL_W, CELL_H, GAP = 62, 34, 8


def ask(expr):
    expr = expr.replace("$__rate_interval", "30s").replace("$job", ".*").replace("$namespace", ".*")
    query = urllib.parse.urlencode({"query": expr, "start": start, "end": end, "step": step})
    answer = json.load(urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{query}"))
    return answer["data"]["result"]


def human(v, unit):
    if unit == "s":
        if v == 0: return "0 s"
        for size, name in ((1e-3, "µs"), (1, "ms")):
            if abs(v) < size: return f"{v * 1e6 if name == 'µs' else v * 1e3:.3g} {name}"
        return f"{v / 60:.3g} min" if v >= 120 else f"{v:.3g} s"
    if unit == "bytes": return f"{v / 2**20:.4g} MiB"
    if unit == "percentunit": return f"{v * 100:.3g}%"
    text = f"{v / 1000:.3g}k" if abs(v) >= 10000 else f"{v:.4g}" if abs(v) >= 1 or v == 0 else f"{v:.2g}"
    return text + {"reqps": " req/s", "ops": " /s"}.get(unit, "")


def legend(target, metric, only):
    form = target["legendFormat"]
    if form == "__auto":
        return "" if only else ", ".join(v for k, v in metric.items() if k != "__name__")
    return re.sub(r"{{(\w+)}}", lambda m: metric.get(m[1], ""), form)


def collect(panel):
    lines = []
    for t in panel["targets"]:
        results = ask(t["expr"])
        for r in results:
            points = [(float(x), float(y)) for x, y in r["values"] if math.isfinite(float(y))]
            if points: lines.append((legend(t, r["metric"], len(results) == 1), points))
    return lines


def ticks(top):
    raw = top / 4 or 1
    base = 10 ** math.floor(math.log10(raw))
    size = next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= raw)
    return [i * size for i in range(int(top / size) + 2)]


def graph(panel, w, h):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    fixed = {o["matcher"]["options"]: o["properties"][0]["value"]["fixedColor"] for o in panel["fieldConfig"]["overrides"]}
    lines = collect(panel)
    left, right, top, bottom = 62, 10, 6, 40
    out = [f'<svg width="{w}" height="{h}" font-size="10" fill="#9fa7b3">']
    if not lines:
        return out[0] + f'<text x="{w / 2}" y="{h / 2}" text-anchor="middle" font-size="13">No data</text></svg>'
    base, drawn = {}, []
    for i, (name, points) in enumerate(lines):
        color = NAMED.get(fixed.get(name, ""), PALETTE[i % len(PALETTE)])
        low = [(x, base.get(x, 0) if stacked else 0) for x, _ in points]
        high = [(x, y + b) for (x, y), (_, b) in zip(points, low)]
        if stacked:
            for x, y in high: base[x] = y
        drawn.append((name, color, low, high))
    most = max((y for d in drawn for _, y in d[3]), default=1) or 1
    marks = ticks(most)
    X = lambda x: left + (x - start) / (end - start) * (w - left - right)
    Y = lambda y: h - bottom - y / marks[-1] * (h - bottom - top)
    for m in marks:
        out.append(f'<line x1="{left}" x2="{w - right}" y1="{Y(m):.1f}" y2="{Y(m):.1f}" stroke="#2c3235"/><text x="{left - 5}" y="{Y(m) + 3:.1f}" text-anchor="end">{human(m, unit)}</text>')
    for i in range(5):
        x = start + (end - start) * (i + .5) / 5
        out.append(f'<text x="{X(x):.0f}" y="{h - bottom + 14}" text-anchor="middle">{time.strftime("%H:%M:%S", time.gmtime(x))}</text>')
    for name, color, low, high in drawn:
        parts, last = [[]], None
        for a, b in zip(low, high):
            if last is not None and a[0] - last > step * 1.5: parts.append([])
            parts[-1].append((a, b))
            last = a[0]
        for part in parts:
            line = " ".join(f"{X(x):.1f},{Y(y):.1f}" for _, (x, y) in part)
            under = " ".join(f"{X(x):.1f},{Y(y):.1f}" for (x, y), _ in reversed(part))
            out.append(f'<polygon points="{line} {under}" fill="{color}" opacity="{.3 if stacked else .07}"/><polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.4"/>')
    x, y = left - 50, h - 10
    for name, color, _, _ in drawn:
        width = 22 + 5.6 * len(name)
        if x + width > w: break
        out.append(f'<rect x="{x}" y="{y - 5}" width="12" height="4" fill="{color}"/><text x="{x + 16}" y="{y}" fill="#ccccdc">{html.escape(name)}</text>')
        x += width
    return "".join(out) + "</svg>"


def stat(panel, w, h):
    defaults = panel["fieldConfig"]["defaults"]
    lines = collect(panel)
    if not lines: return f'<div class="stat" style="line-height:{h}px;color:#9fa7b3;font-size:18px">No data</div>'
    points = lines[0][1]
    value = points[-1][1]
    color = "green"
    for s in defaults["thresholds"]["steps"]:
        if s["value"] is None or value >= s["value"]: color = s["color"]
    color = NAMED[color]
    most = max(y for _, y in points) or 1
    line = " ".join(f"{(x - start) / (end - start) * w:.1f},{h - y / most * h * .45:.1f}" for x, y in points)
    text = f"{value:.0f}" if defaults.get("decimals") == 0 else human(value, defaults["unit"])
    return (f'<svg width="{w}" height="{h}" style="position:absolute;left:0;bottom:0"><polyline points="{line}" fill="none" stroke="{color}" opacity=".5"/></svg>'
            f'<div class="stat" style="line-height:{h - 14}px;color:{color}">{text}</div>')


out, bottom = [], 0
for p in dashboard["panels"]:
    g = p["gridPos"]
    x, y, w, h = g["x"] * CELL_W, g["y"] * CELL_H, g["w"] * CELL_W - GAP, g["h"] * CELL_H - GAP
    bottom = max(bottom, y + h)
    place = f'style="left:{x}px;top:{y + 44}px;width:{w}px;height:{h}px"'
    if p["type"] == "row":
        out.append(f'<div class="row" {place}>⌄ {html.escape(p["title"])}</div>')
        continue
    body = stat(p, w, h - 24) if p["type"] == "stat" else graph(p, w, h - 24)
    out.append(f'<div class="panel" {place}><div class="title">{html.escape(p["title"])}</div>{body}</div>')
page = f'''<!doctype html><meta charset="utf-8"><style>
body{{background:#111217;color:#ccccdc;font-family:Inter,"DejaVu Sans",sans-serif;margin:0;position:relative}}
h1{{font-size:17px;font-weight:500;margin:12px 10px}}
.panel{{position:absolute;background:#181b1f;border:1px solid #2c3235;border-radius:2px;overflow:hidden}}
.title{{font-size:12px;padding:5px 8px;height:14px;white-space:nowrap}} .row{{position:absolute;font-size:14px;padding-top:8px}}
.stat{{font-size:27px;text-align:center;font-weight:500;white-space:nowrap}}</style><h1>zoho-worker</h1>{"".join(out)}'''
with tempfile.TemporaryDirectory() as work:
    with open(work + "/page.html", "w") as f: f.write(page)
    subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                    "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={work}/profile",
                    f"--window-size={24 * CELL_W},{bottom + 56}", f"--screenshot={os.path.abspath(target)}", f"file://{work}/page.html"],
                   check=True, stderr=subprocess.DEVNULL)
