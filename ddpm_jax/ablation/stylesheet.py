"""How the page looks."""

CSS = """
:root {
  color-scheme: light dark;
  --ground: #fbfbfa; --raised: #ffffff; --ink: #1d1d1f; --soft: #6e6e73; --line: #e4e4e7;
  --mark: #0a6b4e; --warn: #a33b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #161618; --raised: #1e1e21; --ink: #ececee; --soft: #9c9ca3; --line: #313136;
    --mark: #6fd3ae; --warn: #ff9d6b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 1120px; margin: 0 auto; padding: 56px 24px 80px; }
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -0.018em; font-weight: 600;
  margin: 0 0 8px; }
h2 { font-size: 18px; letter-spacing: -0.01em; font-weight: 600; margin: 52px 0 4px; }
h3 { font-size: 13px; font-weight: 600; margin: 0 0 8px; }
p { margin: 0 0 12px; max-width: 68ch; }
.soft, figcaption, footer { color: var(--soft); }
.warn { color: var(--warn); }
.soft, footer { font-size: 13px; }
code { font: 0.92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.scroll { overflow-x: auto; margin: 14px 0 0; border: 1px solid var(--line); border-radius: 10px;
  background: var(--raised); }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 9px 16px; text-align: right; white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--raised); }
thead th { font-weight: 500; font-size: 12.5px; color: var(--soft);
  border-bottom: 1px solid var(--line); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody th { font-weight: 500; }
td small { display: block; color: var(--soft); font-size: 12px; }
td.best { font-weight: 700; color: var(--mark); }
td.best small { font-weight: 400; }
td.text { text-align: left; }
.panels, .samples { display: grid; gap: 20px; margin-top: 14px; }
.panels { grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); }
.samples { grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); }
figure { margin: 0; padding: 16px; border: 1px solid var(--line); border-radius: 10px;
  background: var(--raised); min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; }
figcaption { font-size: 13px; margin: 0 0 10px; color: var(--ink); font-weight: 500; }
.samples img { image-rendering: pixelated; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 20px; margin: 14px 0 0;
  font-size: 13.5px; max-width: 86ch; }
dt { font-weight: 500; }
dd { margin: 0; color: var(--soft); }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--line); }
@media (max-width: 600px) {
  main { padding: 32px 16px 56px; }
  h1 { font-size: 23px; }
  th, td { padding: 8px 12px; }
  th:first-child, td:first-child { max-width: 38vw; white-space: normal; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 10px; }
}
"""
