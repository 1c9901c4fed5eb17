"""The doctor's report: one self-contained HTML file without script, light or dark like the reader's system."""

from __future__ import annotations

from jinja2 import Environment
from markupsafe import Markup

from pro_core.doctor.contents import ASSUMPTIONS, about_lines, label, sections
from pro_core.doctor.plots import plots
from pro_core.doctor.verdict import Examination

BADGES = {"gain": "Yes", "none": "No", "unclear": "Cannot tell"}

STYLE = """
:root { color-scheme: light dark; --ground: #f4f5f7; --card: #fff; --ink: #1b2430; --quiet: #566275; --line: #d5dae2;
  --a: #1f6fd6; --b: #d9730d; --c: #8691a1; --yes: #12743b; --no: #a33022; --maybe: #7a5b00; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161c; --card: #1b212a; --ink: #e6ebf2; --quiet: #a3b0c2;
  --line: #36404d; --a: #5aa2ff; --b: #f0984a; --c: #7d899a; --yes: #4ccb80; --no: #ff8a7a; --maybe: #e3b93f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 20px 16px 40px; }
h1 { font-size: 21px; line-height: 1.3; margin: 0 0 4px; }
h2 { font-size: 17px; margin: 32px 0 8px; }
h2 span { font-weight: 400; color: var(--quiet); font-size: 14px; margin-left: 6px; }
h3 { font-size: 14px; margin: 0 0 2px; }
p { margin: 0 0 6px; overflow-wrap: anywhere; }
.quiet, figcaption p, .said { color: var(--quiet); font-size: 13px; }
.card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px;
  margin: 0; }
.verdict { margin: 14px 0; border-left: 5px solid var(--tone); }
.verdict h2 { margin: 0 0 6px; font-size: 19px; }
.badge { display: inline-block; border: 1px solid var(--tone); color: var(--tone); border-radius: 99px; padding: 0 10px;
  margin: 0 8px 0 0; font-size: 14px; font-weight: 600; }
.gain { --tone: var(--yes); } .none { --tone: var(--no); } .unclear { --tone: var(--maybe); }
ul { margin: 0; padding-left: 18px; } li { margin-bottom: 4px; overflow-wrap: anywhere; }
.two { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.plots { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
figure { display: flex; flex-direction: column; }
figure svg { width: 100%; max-width: 420px; height: auto; margin: 8px auto 0; overflow: visible; }
.table { overflow-x: auto; margin-top: 12px; padding: 6px 16px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 5px 8px; text-align: right; white-space: nowrap; }
th { color: var(--quiet); font-weight: 500; } tr + tr td { border-top: 1px solid var(--line); }
.left { text-align: left; }
td:first-child, th:first-child { padding-left: 0; position: sticky; left: -16px; background: var(--card); }
.said { margin-top: 6px; }
"""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>PRO doctor: {{ e.verdict.headline }}</title>
<style>{{ style }}</style>
</head>
<body><main>
<h1>Can a preference adapter help on this data?</h1>
{% for line in about %}<p class="quiet">{{ line }}</p>{% endfor %}
<section class="card verdict {{ e.verdict.kind }}">
<h2><span class="badge">{{ badge }}</span>{{ headline }}</h2>
{% for line in e.verdict.why %}<p>{{ line }}</p>{% endfor %}
</section>
<div class="two">
<section class="card"><h3>What the verdict rests on</h3><ul>
{% for line in assumptions %}<li>{{ line }}</li>{% endfor %}</ul></section>
{% if notes %}<section class="card"><h3>Worth a look</h3><ul>
{% for line in notes %}<li>{{ line }}</li>{% endfor %}</ul></section>{% endif %}
</div>
{% for section in sections %}
<h2>{{ section.title }} <span>{{ section.subtitle }}</span></h2>
<div class="plots">
{% for title, caption, svg in plots[section.key] %}
<figure><figcaption><h3>{{ title }}</h3><p>{{ caption }}</p></figcaption>
{{ svg }}</figure>
{% endfor %}</div>
{% if not section.legend %}{# the plots of correlations show all their numbers #}
<div class="card table"><table>
<tr>{% for cell in section.header %}<th{% if loop.index0 in section.left %} class="left"{% endif %}>
{{- cell }}</th>{% endfor %}</tr>
{% for row in section.rows %}<tr>{% for cell in row %}<td{% if loop.index0 in section.left %} class="left"{% endif %}>
{{- cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
<div class="said">{% for line in section.said %}<p>{{ line }}</p>{% endfor %}</div>
{% endfor %}
</main></body></html>
"""


def render_html(e: Examination) -> str:
    """The report. Every text is escaped; the drawings come from matplotlib, which escapes theirs."""
    headline = e.verdict.headline.removeprefix("none: ")
    environment = Environment(autoescape=True, trim_blocks=True)
    drawn = {
        key: [(title, caption, Markup(svg)) for title, caption, svg in of_section]
        for key, of_section in plots(e).items()
    }
    return environment.from_string(TEMPLATE).render(
        e=e,
        about=about_lines(e),
        badge=BADGES[e.verdict.kind],
        headline=headline[0].upper() + headline[1:],
        assumptions=ASSUMPTIONS,
        notes=[label(note, len(note)) for note in e.notes],
        sections=sections(e),
        plots=drawn,
        style=Markup(STYLE),
    )
